//! One connection out of two: what weir answers itself, and the server legs that it opens.

mod answer;
mod dial;
mod offered;
mod random;
mod simulation;
