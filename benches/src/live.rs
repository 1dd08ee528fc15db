//! Generators in BPF: a program that writes a whole frame and sends it by a device, run over and over by BPF_PROG_RUN with live frames, as
//! a NIC's driver would hand them to its NAPI: nobody pays for an skb that he does not need. Each runs in a thread that only gets
//! the time which the ends leave (SCHED_IDLE).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::Map;
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use weir_control::lab::Namespace;
use weir_sys::affinity;

use crate::Failure;
use crate::bed::LOAD_CPU;

/// Frames that the kernel sends at once.
const BATCH: u32 = 64;
/// Runs of the program in one call: a tenth of a second at least. Each call waits for two RCU grace periods besides
/// (`bpf_prog_change_xdp`, net/bpf/test_run.c), so they must be few.
const REPEAT: u32 = 1 << 20;

/// A generator at work. Dropping it ends it, and unloads what was loaded with it.
#[derive(Debug)]
pub struct Generator {
    stop: Arc<AtomicBool>,
    paused: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

impl Generator {
    /// Starts the program of that name, loaded already, in a namespace, with frames of so many octets. It is paused.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(
        namespace: &Namespace,
        ebpf: Ebpf,
        name: &'static str,
        octets: usize,
    ) -> Result<Self, Failure> {
        let (stop, paused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        let (stops, pauses) = (stop.clone(), paused.clone());
        let thread = namespace.spawn(move || send(ebpf, name, octets, &stops, &pauses))?;
        Ok(Self { stop, paused, thread: Some(thread) })
    }

    /// Lets it sleep or go on. A program that runs ends its call first.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Relaxed);
    }

    /// Ends it.
    ///
    /// # Errors
    /// What ended it before.
    pub fn stop(mut self) -> Result<(), Failure> {
        self.stop.store(true, Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| "the generator panicked")?,
            None => Ok(()),
        }
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs the program until told to stop.
fn send(
    mut ebpf: Ebpf,
    name: &str,
    octets: usize,
    stop: &AtomicBool,
    paused: &AtomicBool,
) -> Result<(), Failure> {
    affinity::pin_to_cpu(LOAD_CPU)?;
    affinity::run_when_idle()?;
    let data = vec![0; octets];
    while !stop.load(Relaxed) {
        if paused.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        let options = TestRunOptions { data_in: Some(&data), repeat: REPEAT, attrs, ..TestRunOptions::new() };
        program(&mut ebpf, name)?.test_run(options)?;
    }
    Ok(())
}

/// A map of a loaded object.
///
/// # Errors
/// It has not got one of that name.
pub fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Map, Failure> {
    ebpf.map_mut(name).ok_or_else(|| format!("the object has no map {name}").into())
}

/// A program of a loaded object.
///
/// # Errors
/// It has not got one of that name, for XDP.
pub fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, Failure> {
    let program = ebpf.program_mut(name).ok_or_else(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}
