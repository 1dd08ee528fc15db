//! Signs of life, by a clock and threads that are made up, and by real ones.

use std::sync::Mutex;

use super::*;

/// A thread with this CPU time, in this state.
struct Thread(u64, Option<State>);

impl Look for Thread {
    fn cpu_time(&mut self, _: u32) -> Option<u64> {
        Some(self.0)
    }

    fn state(&mut self, _: u32) -> Option<State> {
        self.1
    }
}

const MS: u64 = 1_000_000;
const RUNNABLE: Option<State> = Some(State::Runnable);
const ASLEEP: Option<State> = Some(State::Asleep);
const STOPPED: Option<State> = Some(State::Other);

fn watched(breathed: u64) -> Watched<Thread> {
    let sign = Sign::default();
    sign.breathe(breathed);
    Watched::new(sign, Thread(7, RUNNABLE))
}

impl Watched<Thread> {
    /// When it lived last, in ms, as seen at `now` after a beat.
    fn at(&mut self, now: u64, cpu_time: u64, state: Option<State>) -> u64 {
        self.look = Thread(cpu_time, state);
        self.lived(now * MS, (now - 5) * MS) / MS
    }
}

#[test]
fn sign_is_told_once() {
    let (told, board) = (Mutex::new(Vec::new()), Shared::default());
    let tell = |sign| told.lock().unwrap().push(sign);
    let last = [3, 3, 5, 4].into_iter().fold(0, |last, oldest| beat(&board, oldest, last, &tell));
    assert_eq!((last, told.into_inner().unwrap()), (5, vec![3, 5]));
}

/// Packets have gone another way until it was told.
#[test]
fn sign_that_becomes_too_old_while_the_next_is_told_was_late() {
    let board = Shared { limit_ns: 5 * MS, ..Shared::default() };
    let last = clock::monotonic_ns();
    beat(&board, last + 1, last, &|_| std::thread::sleep(Duration::from_millis(10)));
    assert_eq!((board.stalls.load(Relaxed), board.gaps.load(Relaxed)), (1, 1));
}

#[test]
fn thread_that_never_breathed_is_no_sign_of_life() {
    let mut thread = watched(0);
    let sign = thread.sign.clone();
    sign.sleep(1, NAP, || {
        for now in 5..100 {
            assert_eq!((thread.at(now, 0, RUNNABLE), thread.at(now, 0, ASLEEP)), (0, 0));
        }
    });
}

#[test]
fn thread_that_waits_for_a_cpu_lives_for_a_second_and_no_longer() {
    let mut thread = watched(100 * MS);
    let mut at = |now, cpu_time, state| thread.at(now, cpu_time, state);
    // Young enough not to be asked about.
    assert_eq!((at(105, 7, RUNNABLE), at(110, 7, RUNNABLE), at(115, 7, RUNNABLE)), (100, 100, 100));
    // It waits, runs for a while without a breath, waits again.
    assert_eq!((at(120, 7, RUNNABLE), at(125, 7, RUNNABLE)), (105, 110));
    assert_eq!((at(130, 9, RUNNABLE), at(135, 11, RUNNABLE)), (110, 110));
    assert_eq!(at(140, 11, RUNNABLE), 115);
    // It sleeps elsewhere than where it waits for something to do, or was stopped.
    assert_eq!((at(145, 11, ASLEEP), at(150, 11, STOPPED)), (115, 115));
    for now in 31..500 {
        assert!(at(now * 5, 11, RUNNABLE) <= 1100);
    }
    assert_eq!(at(2500, 11, RUNNABLE), 1100);
}

#[test]
fn machine_that_stood_still_is_no_stall_of_its_threads() {
    let mut thread = watched(100 * MS);
    assert_eq!(thread.lived(104 * MS, 99 * MS), 100 * MS);
    assert_eq!(thread.lived(404 * MS, 104 * MS), 400 * MS);
    // The next breath is a new beginning.
    thread.sign.breathe(405 * MS);
    assert_eq!(thread.lived(409 * MS, 404 * MS), 405 * MS);
}

#[test]
fn thread_seen_to_sleep_lives_until_it_was_to_wake() {
    let mut thread = watched(100 * MS);
    let sign = thread.sign.clone();
    let (first, second) =
        sign.sleep(102 * MS, NAP, || (thread.at(105, 7, ASLEEP), thread.at(120, 7, ASLEEP)));
    assert_eq!((first, second, thread.is_asleep), (105, 120, true));
    // It has something to do and has not breathed yet: it lived when it was seen.
    assert_eq!((thread.at(125, 7, RUNNABLE), thread.is_asleep), (120, false));
    sign.breathe(126 * MS);
    assert_eq!(thread.at(130, 8, RUNNABLE), 126);
    sign.sleep(131 * MS, NAP, || {
        // It does not wake.
        assert_eq!((thread.at(180, 8, ASLEEP), thread.at(195, 8, ASLEEP)), (180, 181));
        assert_eq!((thread.at(240, 8, ASLEEP), thread.is_asleep), (181, false));
    });
}

#[test]
fn thread_that_hangs_while_it_says_that_it_sleeps_gives_no_sign() {
    for state in [STOPPED, None] {
        let mut thread = watched(100 * MS);
        let sign = thread.sign.clone();
        sign.sleep(102 * MS, NAP, || {
            assert_eq!(thread.at(105, 7, ASLEEP), 105);
            assert_eq!((thread.at(120, 7, state), thread.at(125, 7, state)), (105, 105), "{state:?}");
            // It runs, where it should wait.
            assert_eq!((thread.at(130, 9, RUNNABLE), thread.at(135, 14, RUNNABLE)), (105, 105));
        });
        // It came back, and spins.
        assert_eq!((thread.at(140, 19, RUNNABLE), thread.at(145, 24, RUNNABLE)), (105, 105));
    }
}

#[test]
fn thread_that_cannot_be_seen_sleeps_for_a_breath_only() {
    let long = together(100 * MS, NAP);
    let mut thread = watched(100 * MS);
    let sign = thread.sign.clone();
    assert_eq!(sign.longest_sleep(100 * MS), BREATH);
    for (state, longest) in [(None, BREATH), (RUNNABLE, long), (ASLEEP, long), (None, BREATH), (ASLEEP, long)]
    {
        sign.sleep(100 * MS, BREATH, || thread.at(105, 7, state));
        assert_eq!(sign.longest_sleep(100 * MS), longest, "{state:?}");
    }
}

#[test]
fn waits_end_together_just_after_a_beat() {
    for now in (0..40 * MS).step_by(70_001) {
        for longest in [NAP, Duration::from_millis(125)] {
            let end = now + together(now, longest).as_nanos() as u64;
            assert_eq!(end % QUIET, AFTER);
            assert!((now + longest.as_nanos() as u64).checked_sub(end).unwrap() < QUIET, "{now}");
        }
    }
}

#[test]
fn thread_that_sleeps_is_not_late() {
    let sign = Sign::default();
    assert!(!sign.is_late(100 * MS, MS));
    sign.breathe(MS);
    assert!(sign.is_late(100 * MS, MS) && !sign.is_late(2 * MS, MS));
    assert!(!sign.sleep(2 * MS, NAP, || sign.is_late(100 * MS, MS)));
}

#[test]
fn thread_that_sleeps_for_long_is_no_stall_until_it_oversleeps() {
    let (sign, told) = (Sign::default(), Arc::<AtomicU64>::default());
    let (sleeper, ended) = (sign.clone(), Arc::<AtomicBool>::default());
    let ends = ended.clone();
    let thread = std::thread::spawn(move || {
        sleeper.begin();
        while !ends.load(Relaxed) {
            sleeper.breathe(clock::monotonic_ns());
            let longest = sleeper.longest_sleep(clock::monotonic_ns()) * 4;
            sleeper.sleep(clock::monotonic_ns(), longest, || std::thread::sleep(longest));
        }
        // Longer than it says.
        sleeper.sleep(clock::monotonic_ns(), BREATH, || std::thread::sleep(LIMIT * 4));
        sleeper.breathe(clock::monotonic_ns());
        std::thread::sleep(BEAT * 4);
    });
    let heart = Heartbeat::start("test", LIMIT, vec![sign.clone()], told, |_| {}).unwrap();
    assert!(heart.wait(Duration::from_secs(5)));
    std::thread::sleep(NAP * 4);
    assert!(sign.longest_sleep(0) > BREATH);
    let before = heart.stalls();
    std::thread::sleep(Duration::from_secs(1));
    // A machine that stands still may have some; each sleep would be one.
    let stalls = heart.stalls();
    assert!(stalls.count - before.count < 3, "{before:?}, {stalls:?}");
    ended.store(true, Relaxed);
    thread.join().unwrap();
    assert!(heart.stalls().count > stalls.count, "{stalls:?}");
}

#[test]
fn thread_that_spins_after_its_sleep_is_not_told_to_live() {
    let (sign, told) = (Sign::default(), Arc::<AtomicU64>::default());
    let (sleeper, seen) = (sign.clone(), told.clone());
    let thread = std::thread::spawn(move || {
        sleeper.begin();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(300) {
            sleeper.breathe(clock::monotonic_ns());
            sleeper.sleep(clock::monotonic_ns(), NAP, || std::thread::sleep(NAP));
        }
        let (woken, begun) = (clock::monotonic_ns(), Instant::now());
        while begun.elapsed() < Duration::from_millis(300) {
            std::hint::spin_loop();
        }
        (woken, seen.load(Relaxed))
    });
    let board = told.clone();
    let tell = move |sign| board.store(sign, Relaxed);
    let heart = Heartbeat::start("test", LIMIT, vec![sign], Arc::default(), tell).unwrap();
    assert!(heart.wait(Duration::from_secs(5)));
    let (woken, last) = thread.join().unwrap();
    // On a busy machine it may have waited for a CPU.
    assert!(woken - last.min(woken) < 2 * QUIET, "it was seen to sleep: {woken}, {last}");
    assert!(last < woken + 100 * MS, "{woken}, {last}");
}

#[test]
fn thread_that_pauses_is_one_stall() {
    let sign = Sign::default();
    let told = Arc::<AtomicU64>::default();
    let heart = Heartbeat::start("test", LIMIT, vec![sign.clone()], told.clone(), |_| {}).unwrap();
    let breathe_for = |time| {
        let from = Instant::now();
        while from.elapsed() < time {
            sign.breathe(clock::monotonic_ns());
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    breathe_for(Duration::from_millis(50));
    let before = heart.stalls();
    std::thread::sleep(LIMIT * 3);
    assert_eq!(heart.stalls(), before, "it is not over yet");
    breathe_for(Duration::from_millis(50));
    let stalls = heart.stalls();
    assert!(stalls.count > before.count && stalls.longest >= LIMIT * 2, "{stalls:?}");
    assert_eq!(told.load(Relaxed), stalls.count, "whoever missed something learns of it");
}
