//! The binary `weir`.

use std::process::ExitCode;

/// Faster than the system's for the relay's and the admin API's small allocations; the packet path makes none.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    weir_control::cli::main()
}
