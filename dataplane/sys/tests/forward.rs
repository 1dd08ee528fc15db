//! AF_XDP end to end: frames of a packet socket in one namespace are steered to queues in another and sent back.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use support::*;
use weir_sys::clock;
use weir_sys::packet::PacketSocket;
use weir_sys::steering::{AttachMode, AttachedMode, Outcome};
use weir_sys::waiter::Waiter;
use weir_sys::xsk::{Area, Frame, Mode, Queue, RingSizes, XskError, frames_lost};

/// Sends back what arrives until `packets` have gone and come back from the completion rings.
fn reflect(queues: &mut [Queue], free: &mut Vec<Frame>, packets: usize) -> usize {
    let until = clock::monotonic_ns() + PATIENCE;
    let mut waiter = Waiter::new().unwrap();
    for queue in queues.iter() {
        waiter.add(queue.fd()).unwrap();
    }
    let (mut received, mut completed) = (0, 0);
    let mut batch = Vec::with_capacity(64);
    while completed < packets && clock::monotonic_ns() < until {
        for queue in queues.iter_mut() {
            completed += queue.complete(free);
            queue.fill(free);
            received += queue.recv(&mut batch, 64);
            batch.iter_mut().for_each(turn_round);
            while !batch.is_empty() && clock::monotonic_ns() < until {
                queue.send(&mut batch);
                queue.kick();
                completed += queue.complete(free);
            }
            queue.kick();
        }
        waiter.wait(Duration::from_millis(1), || false).unwrap();
    }
    for queue in queues.iter() {
        waiter.remove(queue.fd()).unwrap();
    }
    assert_eq!(completed, received);
    received
}

/// Sends `packets` SYNs and returns the numbers of those that come back. No more are under way than the smallest ring
/// holds, so that none is lost however slow the machine is.
fn play(packets: u16) -> BTreeSet<u16> {
    const WINDOW: usize = 64;
    let socket = PacketSocket::open("peer").unwrap();
    let mut back = BTreeSet::new();
    let mut buffer = [0; 2048];
    for number in 0..=packets {
        let room = if number < packets { WINDOW } else { 1 };
        while usize::from(number) - back.len() >= room {
            let Some(len) = socket.recv(&mut buffer, Duration::from_nanos(PATIENCE)).unwrap() else {
                return back;
            };
            let frame = &buffer[..len];
            assert_eq!((&frame[..6], &frame[6..12]), (&CLIENT_MAC[..], &BOX_MAC[..]));
            assert!(back.insert(number_of(frame).unwrap()), "came back twice");
        }
        if number < packets {
            socket.send(&syn(number)).unwrap();
        }
    }
    back
}

fn frames_sent_come_back(queues: u32, mode: AttachMode, expected: AttachedMode) {
    const PACKETS: u16 = 2000;
    let link = Link::new(queues);
    let (area, mut free) = Area::new(2048, 2048, false).unwrap();
    let frames = free.len();
    std::thread::scope(|scope| {
        let (inside, outside) = (&link.inside, &link.outside);
        let (started, start) = std::sync::mpsc::channel();
        let back = scope.spawn(move || {
            start.recv().unwrap();
            outside.run(|| play(PACKETS)).unwrap()
        });
        let gateway = move || {
            let (steering, attached) = steer(mode);
            assert_eq!(attached, expected);
            let mut opened: Vec<Queue> =
                (0..queues).map(|queue| open(&area, &mut free, &steering, queue, 256)).collect();
            assert!(opened.iter().all(|queue| !queue.zero_copy()), "veth cannot");
            started.send(()).unwrap();
            let received = reflect(&mut opened, &mut free, PACKETS.into());
            let counters = steering.counters().unwrap();
            assert_eq!(received, usize::from(PACKETS));
            assert_eq!(counters.of(Outcome::Redirect), PACKETS.into());
            for queue in opened {
                assert_eq!(queue.outstanding(), 0, "{queue:?}: {:?}", queue.stats());
                free.extend(queue.close());
            }
            free
        };
        let free = inside.run(gateway).unwrap();
        assert_eq!(back.join().unwrap(), (0..PACKETS).collect());
        assert_eq!(free.len(), frames, "every frame is free again");
        let distinct: BTreeSet<usize> = free.iter().map(|frame| frame.data().as_ptr() as usize).collect();
        assert_eq!(distinct.len(), frames, "and no frame is there twice");
        std::mem::forget(free);
    });
    assert_eq!(frames_lost(), 0);
}

#[test]
fn frames_sent_on_one_queue_native_come_back() {
    frames_sent_come_back(1, AttachMode::Auto, AttachedMode::Native);
}

#[test]
fn frames_sent_on_two_queues_native_come_back() {
    frames_sent_come_back(2, AttachMode::Native, AttachedMode::Native);
}

#[test]
fn frames_sent_on_one_queue_generic_come_back() {
    frames_sent_come_back(1, AttachMode::Generic, AttachedMode::Generic);
}

#[test]
fn device_removed_under_a_queue_gives_all_frames_back() {
    let link = Link::new(1);
    let outside = &link.outside;
    let gateway = || {
        let (area, mut free) = Area::new(512, 2048, false).unwrap();
        let (steering, _) = steer(AttachMode::Auto);
        let mut queue = open(&area, &mut free, &steering, 0, 128);
        assert!(queue.alive());
        outside.run(|| PacketSocket::open("peer").unwrap().send(&syn(0)).unwrap()).unwrap();
        let until = clock::monotonic_ns() + PATIENCE;
        let mut batch = Vec::new();
        while batch.is_empty() && clock::monotonic_ns() < until {
            queue.recv(&mut batch, 1);
        }
        assert_eq!(number_of(batch[0].data()), Some(0));
        ip(&["link", "del", "port"]);
        // The crate would panic here.
        let sent = queue.send(&mut batch);
        assert!(!queue.alive());
        assert_eq!((sent, batch.len(), queue.outstanding()), (1, 0, 1));
        // From now on nothing is taken.
        batch.push(free.pop().unwrap());
        assert_eq!(queue.send(&mut batch), 0);
        assert_eq!(queue.fill(&mut free), 0);
        queue.kick();
        queue.recv(&mut batch, 64);
        free.append(&mut batch);
        free.extend(queue.close());
        assert_eq!(free.len(), 512);
        std::mem::forget(free);
    };
    link.inside.run(gateway).unwrap();
    assert_eq!(frames_lost(), 0);
}

#[test]
fn device_set_down_and_up_goes_on() {
    let link = Link::new(1);
    let outside = &link.outside;
    let gateway = || {
        let (area, mut free) = Area::new(512, 2048, false).unwrap();
        let (steering, _) = steer(AttachMode::Auto);
        let mut queue = open(&area, &mut free, &steering, 0, 128);
        weir_sys::ethtool::set_up("port", false).unwrap();
        let mut batch = vec![free.pop().unwrap()];
        batch[0].set_len(60);
        queue.send(&mut batch);
        queue.kick();
        assert!(queue.alive(), "down is not gone");
        weir_sys::ethtool::set_up("port", true).unwrap();
        outside.run(|| PacketSocket::open("peer").unwrap().send(&syn(7)).unwrap()).unwrap();
        let until = clock::monotonic_ns() + PATIENCE;
        while (batch.is_empty() || queue.outstanding() > 0) && clock::monotonic_ns() < until {
            queue.recv(&mut batch, 1);
            queue.kick();
            queue.complete(&mut free);
        }
        assert_eq!(number_of(batch[0].data()), Some(7));
        free.append(&mut batch);
        free.extend(queue.close());
        assert_eq!(free.len(), 512);
        std::mem::forget(free);
    };
    link.inside.run(gateway).unwrap();
}

/// How often the kernel found no frame to receive into while nobody read from a queue with rings of these sizes, and how many
/// frames it was given at the start.
fn starved(rx: u32, fill: u32) -> (u64, usize) {
    const FRAMES: usize = 1024;
    let link = Link::new(1);
    let outside = &link.outside;
    let gateway = || {
        let (area, mut free) = Area::new(FRAMES, 2048, false).unwrap();
        let (steering, _) = steer(AttachMode::Auto);
        let sizes = RingSizes { rx, ..RingSizes::all(fill) };
        let queue = open_with(&area, &mut free, &steering, 0, sizes);
        let given = queue.in_fill();
        let flood = || {
            let socket = PacketSocket::open("peer").unwrap();
            (0..400).for_each(|number| socket.send(&syn(number)).unwrap());
        };
        outside.run(flood).unwrap();
        let until = clock::monotonic_ns() + PATIENCE;
        let stats = loop {
            let stats = queue.stats().unwrap();
            let lost = stats.rx_ring_full + stats.rx_fill_ring_empty + stats.rx_dropped;
            if lost >= 400 - u64::from(rx) || clock::monotonic_ns() > until {
                break stats;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        free.extend(queue.close());
        assert_eq!(free.len(), FRAMES, "every frame is free again");
        std::mem::forget(free);
        (stats.rx_fill_ring_empty, given)
    };
    link.inside.run(gateway).unwrap()
}

/// A driver that has run out of frames waits to be woken, and igb's does not wake: its port would stand still for good.
#[test]
fn worker_that_reads_nothing_leaves_frames_to_receive_into_where_fewer_packets_may_wait() {
    let (times, given) = starved(128, 128);
    assert!(times > 0, "rings of one size run out together");
    assert_eq!(given, 128, "full before the driver sees it");
    assert_eq!(starved(64, 128), (0, 128));
}

#[test]
fn queue_that_cannot_be_says_device_queue_and_what_to_do() {
    let link = Link::new(1);
    let gateway = || {
        let (area, mut free) = Area::new(64, 4096, false).unwrap();
        let index = weir_sys::ethtool::index_of("port").unwrap();
        let mut open = |device: &str, index, queue, mode, entries| {
            let queue = Queue::open(&area, device, index, queue, mode, RingSizes::all(entries), &mut free);
            let opened = queue.map(|queue| free.extend(queue.close()));
            assert_eq!(free.len(), 64, "none is lost where there is no queue");
            opened
        };
        let error = open("port", index, 0, Mode::Auto, 64).unwrap_err();
        assert!(matches!(error, XskError::NoProgram { .. }), "{error}");
        let (steering, _) = steer(AttachMode::Auto);
        let rows = [
            (open("port", index, 0, Mode::ZeroCopy, 64), "the driver cannot do this mode"),
            (open("port", index, 1, Mode::Auto, 64), "no such queue"),
            (open("port", index, 0, Mode::Auto, 100), "a power of two"),
            (open("none", 9999, 0, Mode::Auto, 64), "does not exist"),
        ];
        for (result, words) in rows {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let (all, mut none) = (RingSizes::all(64), Vec::new());
        let first = Queue::open(&area, "port", index, 0, Mode::Copy, all, &mut none).unwrap();
        let error = open("port", index, 0, Mode::Auto, 64).unwrap_err().to_string();
        assert!(error.starts_with("device port queue 0: ") && error.contains("another process"), "{error}");
        assert!(first.close().is_empty());
        // Closed means free: it can be had again.
        let until = clock::monotonic_ns() + PATIENCE;
        while open("port", index, 0, Mode::Copy, 64).is_err() {
            assert!(clock::monotonic_ns() < until);
            std::thread::sleep(Duration::from_millis(1));
        }
        std::mem::forget(free);
        drop(steering);
    };
    link.inside.run(gateway).unwrap();
}

/// Fail open: what a killed gateway leaves on its device is nothing.
#[test]
fn process_killed_takes_its_program_off_the_device() {
    const ROLE: &str = "WEIR_TEST_HOLDS_THE_PROGRAM";
    if std::env::var_os(ROLE).is_some() {
        let (_steering, _) = steer(AttachMode::Auto);
        println!("attached");
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let link = Link::new(1);
    let gateway = || {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let name = "process_killed_takes_its_program_off_the_device";
        command.args([name, "--exact", "--nocapture"]).env(ROLE, "1").stdout(std::process::Stdio::piped());
        let mut child = weir_sys::process::die_with_parent(&mut command).spawn().unwrap();
        let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        assert!(lines.map_while(Result::ok).any(|line| line.ends_with("attached")));
        let index = weir_sys::ethtool::index_of("port").unwrap();
        let mut second = weir_sys::steering::Steering::load(&Default::default()).unwrap();
        assert!(second.attach("port", index, AttachMode::Auto).is_err(), "it is there");
        child.kill().unwrap();
        child.wait().unwrap();
        let until = clock::monotonic_ns() + PATIENCE;
        while second.attach("port", index, AttachMode::Auto).is_err() {
            assert!(clock::monotonic_ns() < until, "it is still there");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    link.inside.run(gateway).unwrap();
}
