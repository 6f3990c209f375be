//! Tests against real PostgreSQL.
