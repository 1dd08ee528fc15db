//! Connections that a process before has left in the express lane, shared out among the workers.

use weir_core::express::{Adopted, Names};
use weir_core::flow::key::{FlowHasher, FlowKey, Tuple, owner};
use weir_core::frame::Frame;
use weir_core::ids::Nanos;
use weir_core::pipeline::Pipeline;

/// Gives each connection to the worker that owns it, and claims its server leg for that where those packets come to another one. Where
/// either has no room, or its addresses are another's, neither has it, and it comes back: one that is known only by halves would end
/// without its worker, or be reset by the one that does not know it.
pub fn share_out<F: Frame>(
    pipelines: &mut [Pipeline<F>],
    adopted: &[Adopted],
    hasher: &FlowHasher,
    now: Nanos,
) -> Vec<Names> {
    let workers = pipelines.len();
    let owner = |tuple: &Tuple| owner(hasher.hash(&FlowKey::of(tuple)), workers);
    let mut left = Vec::new();
    for adopted in adopted {
        let Names { client, server } = adopted.names;
        let (of, to) = (owner(&client), owner(&server));
        let mut has_room = true;
        if of != to {
            has_room = pipelines.get_mut(to).is_some_and(|pipeline| pipeline.claim(now, &server, of));
        }
        has_room = has_room && pipelines.get_mut(of).is_some_and(|pipeline| pipeline.adopt(now, adopted));
        if has_room {
            continue;
        }
        if of != to
            && let Some(pipeline) = pipelines.get_mut(to)
        {
            pipeline.release_claim(&FlowKey::of(&server), of);
        }
        left.push(adopted.names);
    }
    left
}
