//! How far a long verb is, on standard error: a bar on a terminal, a line now and then elsewhere.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use walden_engine::progress::Progress;

use crate::render;

/// How often a line is written where there is no terminal: a log that is read later, often a journal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How often a bar is redrawn at most.
const REDRAWS_A_SECOND: u8 = 8;

/// How often a bar is redrawn although nothing moved, so that its clock goes on.
const REDRAW_EVERY: Duration = Duration::from_millis(250);

/// A bar if standard error is a terminal, else lines.
#[must_use]
pub fn on_standard_error() -> Arc<dyn Progress> {
    if std::io::stderr().is_terminal() {
        Arc::new(Bar::new())
    } else {
        Arc::new(Lines::new(std::io::stderr()))
    }
}

/// A bar with size, rate and time left; one for each phase, none before the first.
struct Bar(RwLock<ProgressBar>);

impl Bar {
    fn new() -> Self {
        Self(RwLock::new(ProgressBar::hidden()))
    }

    fn current(&self) -> ProgressBar {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.current().finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    let figures = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = out.write_str(&figures(state.pos(), state.len(), state.elapsed()));
    };
    // The templates are constants of this file; were one wrong, indicatif's own would do.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("figures", figures)
}

impl Progress for Bar {
    fn phase(&self, name: &str, total_bytes: Option<u64>) {
        let style = style(match total_bytes {
            Some(_) => "{prefix} [{bar:24}] {figures}",
            None => "{spinner} {prefix} {figures}",
        });
        // Hidden until it is dressed, so that nothing half made is drawn.
        let bar = ProgressBar::with_draw_target(total_bytes, ProgressDrawTarget::hidden())
            .with_prefix(name.to_owned())
            .with_style(style);
        let old = std::mem::replace(
            &mut *self.0.write().unwrap_or_else(PoisonError::into_inner),
            bar.clone(),
        );
        old.finish_and_clear();
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS_A_SECOND));
        bar.enable_steady_tick(REDRAW_EVERY);
    }

    fn advance(&self, bytes: u64) {
        self.current().inc(bytes);
    }

    fn message(&self, text: &str) {
        self.current().suspend(|| {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        });
    }
}

/// A line at each phase's beginning and end, and every [`LINE_EVERY`] between.
struct Lines<W>(Mutex<State<W>>);

struct State<W> {
    out: W,
    name: String,
    done: u64,
    total: Option<u64>,
    begun: Instant,
    line_at: Instant,
}

impl<W: std::io::Write> Lines<W> {
    fn new(out: W) -> Self {
        let now = Instant::now();
        Self(Mutex::new(State {
            out,
            name: String::new(),
            done: 0,
            total: None,
            begun: now,
            line_at: now,
        }))
    }

    fn with_state(&self, change: impl FnOnce(&mut State<W>)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl<W: std::io::Write> State<W> {
    fn line(&mut self, text: &str) {
        // Whoever closed standard error wants no lines.
        let _ = writeln!(self.out, "{text}");
        self.line_at = Instant::now();
    }

    fn figures(&mut self) {
        let line = format!(
            "{}: {}",
            self.name,
            figures(self.done, self.total, self.begun.elapsed())
        );
        self.line(&line);
    }

    fn end_phase(&mut self) {
        if self.done > 0 {
            self.figures();
        }
    }
}

impl<W: std::io::Write + Send> Progress for Lines<W> {
    fn phase(&self, name: &str, total_bytes: Option<u64>) {
        self.with_state(|state| {
            state.end_phase();
            state.name = name.to_owned();
            (state.done, state.total, state.begun) = (0, total_bytes, Instant::now());
            state.line(name);
        });
    }

    fn advance(&self, bytes: u64) {
        self.with_state(|state| {
            state.done = state.done.saturating_add(bytes);
            if state.line_at.elapsed() >= LINE_EVERY {
                state.figures();
            }
        });
    }

    fn message(&self, text: &str) {
        self.with_state(|state| state.line(text));
    }
}

/// `1234 MB of 4196 MB (29%), 120 MB/s, 25s left`; where bytes are not counted, the time that it has taken.
fn figures(done: u64, total: Option<u64>, elapsed: Duration) -> String {
    let total = total.filter(|total| *total > 0);
    let mut text = match total {
        None if done == 0 => return render::span(elapsed),
        None => render::size(done),
        Some(total) => {
            let percent = u128::from(done) * 100 / u128::from(total);
            format!(
                "{} of {} ({}%)",
                render::size(done),
                render::size(total),
                percent.min(100)
            )
        }
    };
    if done > 0 {
        let _ = write!(text, ", {}", render::rate(done, elapsed));
        if let Some(left) = total
            .and_then(|total| total.checked_sub(done))
            .filter(|left| *left > 0)
            && let Ok(left) =
                Duration::try_from_secs_f64(elapsed.as_secs_f64() * (left as f64 / done as f64))
        {
            let _ = write!(text, ", {} left", render::span(left));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_show_size_rate_and_time_left() {
        let mb = 1024 * 1024;
        let second = Duration::from_secs(1);
        assert_eq!(
            figures(100 * mb, Some(400 * mb), second),
            "100 MB of 400 MB (25%), 100 MB/s, 3.0s left"
        );
        assert_eq!(
            figures(400 * mb, Some(400 * mb), second * 2),
            "400 MB of 400 MB (100%), 200 MB/s"
        );
        assert_eq!(
            figures(500 * mb, Some(400 * mb), second),
            "500 MB of 400 MB (100%), 500 MB/s",
            "a cluster that grew"
        );
        assert_eq!(figures(100 * mb, None, second), "100 MB, 100 MB/s");
        assert_eq!(
            figures(0, Some(400 * mb), Duration::ZERO),
            "0 bytes of 400 MB (0%)"
        );
        assert_eq!(
            figures(0, Some(0), Duration::ZERO),
            "0.0s",
            "nothing to do is no division by zero"
        );
    }

    #[test]
    fn lines_are_written_at_phases_and_seldom_between() {
        let lines = Lines::new(Vec::new());
        lines.phase("copying", Some(2048));
        for _ in 0..1000 {
            lines.advance(1);
        }
        lines.message("waiting for WAL");
        lines.phase("checking", None);
        lines.with_state(|state| {
            let text = String::from_utf8_lossy(&state.out).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(
                lines.len(),
                4,
                "a line for each phase, message and end, none for each step: {text}"
            );
            assert_eq!(lines.first(), Some(&"copying"));
            assert!(
                text.contains("copying: 1000 bytes of 2048 bytes (48%)"),
                "the phase's end says how far it came: {text}"
            );
            assert_eq!(lines.last(), Some(&"checking"));
        });
    }
}
