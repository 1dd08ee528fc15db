//! The relay as a pure machine: half-close, back-pressure, limits.
