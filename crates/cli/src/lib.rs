//! Configuration, rendering and exit codes of the three programs.
