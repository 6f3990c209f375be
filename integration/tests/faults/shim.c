/* What goes wrong around a program, loaded before its C library with LD_PRELOAD:
 * FAULT_WRITE=n     its n-th write to a file fails with the error FAULT_ERRNO, and the file FAULT_TOLD is made
 * FAULT_CLOCK=s     each look at the clock finds it s seconds ahead or behind, in turn */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int fails(int fd)
{
    static atomic_long count;
    const char *at = getenv("FAULT_WRITE");
    struct stat file;

    if (!at || fstat(fd, &file) != 0 || !S_ISREG(file.st_mode))
        return 0;
    if (atomic_fetch_add(&count, 1) + 1 != atol(at))
        return 0;
    close(open(getenv("FAULT_TOLD"), O_CREAT | O_WRONLY, 0600));
    errno = atoi(getenv("FAULT_ERRNO"));
    return 1;
}

ssize_t write(int fd, const void *bytes, size_t length)
{
    return fails(fd) ? -1 : syscall(SYS_write, fd, bytes, length);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return fails(fd) ? -1 : syscall(SYS_writev, fd, parts, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at)
{
    return fails(fd) ? -1 : syscall(SYS_pwrite64, fd, bytes, length, at);
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    static atomic_long looks;
    const char *jump = getenv("FAULT_CLOCK");
    int result = syscall(SYS_clock_gettime, clock, time);

    if (jump && result == 0 && clock == CLOCK_REALTIME)
        time->tv_sec += atomic_fetch_add(&looks, 1) % 2 ? atol(jump) : -atol(jump);
    return result;
}
