//! `weir replay`: captures through the pipeline (DESIGN section 10).

pub mod capture;
