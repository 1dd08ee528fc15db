//! `weir drain`: the box is taken out without cutting what runs.

use weir_control::demo::stage::Family;

use crate::config::Settings;
use crate::express::{always, downloads_in_the_lane, ready};
use crate::world::{Download, HTTP, fetch_intact, play, prepare};

const BODY: u64 = 4 << 20;
const RATE: u64 = 1 << 20;

#[test]
fn drained_weir_lets_connections_finish_forwards_new_ones_and_ends() {
    for handshake in ["relay", "answer", "through"] {
        prepare(&Settings { handshake, ..Settings::default() }, |world| {
            world.weir.start();
            world.meet_neighbours();
            let downloads = Family::BOTH.map(|family| Download::start(world, family, BODY, RATE));
            let mut command = world.weir.command("drain");
            command.args(["--deadline", "60s"]);
            let finished = std::thread::scope(|scope| {
                let drain = scope.spawn(|| world.weir.finish(command));
                // While it drains, and after.
                while !drain.is_finished() {
                    for family in Family::BOTH {
                        fetch_intact(&mut world.connect(family, HTTP), 1000);
                    }
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                drain.join().expect("the command ends")
            });
            assert_eq!(finished.code(), 0, "{handshake}: {finished:?}");
            assert!(finished.output.contains("nothing was cut"), "{handshake}: {finished:?}");
            downloads.into_iter().for_each(Download::finish);
            let ended = world.weir.wait();
            assert_eq!(ended.code(), 0, "{handshake}: {ended:?}");
            world.assert_as_before();
        });
    }
}

#[test]
fn drained_weir_waits_for_connections_that_only_the_express_lane_translates() {
    play(&Settings { handshake: "answer", ..always() }, |world| {
        ready(world);
        let downloads = downloads_in_the_lane(world);
        let mut command = world.weir.command("drain");
        command.args(["--deadline", "60s"]);
        let finished = world.weir.finish(command);
        assert_eq!(finished.code(), 0, "{finished:?}");
        assert!(finished.output.contains("nothing was cut"), "{finished:?}");
        downloads.into_iter().for_each(Download::finish);
        assert_eq!(world.weir.wait().code(), 0);
        world.assert_as_before();
    });
}

#[test]
fn what_runs_beyond_the_deadline_is_cut_and_said_to_be() {
    prepare(&Settings { handshake: "relay", ..Settings::default() }, |world| {
        world.weir.start();
        let mut streams = Family::BOTH.map(|family| world.connect(family, HTTP));
        streams.iter_mut().for_each(|stream| fetch_intact(stream, 1000));
        let mut command = world.weir.command("drain");
        command.args(["--deadline", "1s", "--json"]);
        let finished = world.weir.finish(command);
        assert_eq!(finished.code(), 0, "{finished:?}");
        let said: serde_json::Value = serde_json::from_str(&finished.output).expect("JSON");
        assert_eq!((&said["open"], &said["cut_relay"], &said["cut_fast"]), (&2.into(), &2.into(), &0.into()));
        for mut stream in streams {
            let end = std::io::Read::read(&mut stream, &mut [0; 1]).map_err(|error| error.kind());
            assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
        }
        assert_eq!(world.weir.wait().code(), 0);
        world.assert_as_before();
    });
}
