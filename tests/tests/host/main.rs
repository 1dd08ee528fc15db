//! The kernel's side on real kernels: every test runs in a process and a network namespace of its own.

mod fib;
mod install;
mod plans;
mod recipe;
mod rollback;
mod space;
mod swap;
mod tproxy;
