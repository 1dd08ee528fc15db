//! `weir demo`: real traffic on every road, a report.
