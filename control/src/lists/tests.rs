//! Lists that change under a running watch: what is published, and what is told.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_core::policy::{Facts, Policy, Protocol};

use super::board::{Board, metrics};
use super::keep;
use super::watch::{ListWatch, Relisted};
use crate::config::{self, Config};

/// How long a change may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than a file that nobody writes is left to settle.
const SETTLED: Duration = Duration::from_millis(700);

/// A folder with a configuration and its lists, followed.
struct Place {
    folder: PathBuf,
    board: Arc<Board>,
    watch: ListWatch,
    runtime: tokio::runtime::Runtime,
}

impl Place {
    /// `lists` are set up in the folder before the watch begins.
    fn new(test: &str, lists: impl FnOnce(&PathBuf)) -> Self {
        let folder = std::env::temp_dir().join(format!("weir-lists-{}-{test}", std::process::id()));
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(&folder).unwrap();
        lists(&folder);
        let text = "[[port]]\nname = \"lan\"\ndevice = \"lan0\"\n[[intercept]]\nname = \"web\"\nfrom = \"lan\"\n\
                    to = [\"0.0.0.0/0\", \"::/0\"]\ntcp = 443\nrules = [\n\
                    { host_file = \"names.txt\", action = \"reset\" },\n\
                    { from_file = \"clients.txt\", action = \"drop\" },\n]\n";
        fs::write(folder.join("clients.txt"), "192.0.2.0/24\n2001:db8::/32\n").unwrap();
        fs::write(folder.join("weir.toml"), text).unwrap();
        let (config, _) = config::load(&folder.join("weir.toml")).unwrap_or_else(|report| panic!("{report}"));
        let board = Arc::new(Board::new(&config.lists));
        let watch = ListWatch::start(&config, board.clone()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        Self { folder, board, watch, runtime }
    }

    fn plain(test: &str) -> Self {
        Self::new(test, |folder| fs::write(folder.join("names.txt"), "old.example\n").unwrap())
    }

    /// The configuration with its lists as they are now.
    fn config(&self) -> Config {
        config::load(&self.folder.join("weir.toml")).unwrap_or_else(|report| panic!("{report}")).0
    }

    fn names(&self) -> PathBuf {
        self.folder.join("names.txt")
    }

    fn relisted(&mut self, within: Duration) -> Option<Relisted> {
        let Self { runtime, watch, .. } = self;
        runtime.block_on(async { tokio::time::timeout(within, watch.relisted()).await.ok() })
    }

    /// Waits for rules that reset `host`.
    #[track_caller]
    fn resets(&mut self, host: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "{host} is not reset; {:?}", self.board.views());
            if let Some(relisted) = self.relisted(PATIENCE)
                && verdict(&relisted, "10.0.0.1", host) == "reset"
            {
                return;
            }
        }
    }

    /// Waits until the list of names has a warning that says `what`. One that the file is being written may come before.
    #[track_caller]
    fn warns(&self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let warnings = self.board.warnings();
            if warnings.iter().any(|warning| warning.contains(what)) {
                return;
            }
            assert!(Instant::now() < deadline, "no warning says {what:?}: {warnings:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.folder));
    }
}

fn verdict(relisted: &Relisted, client: &str, host: &str) -> &'static str {
    decide(&relisted.policy, client, host)
}

fn decide(policy: &Policy, client: &str, host: &str) -> &'static str {
    let client: std::net::IpAddr = client.parse().unwrap();
    let server = if client.is_ipv4() { "203.0.113.1" } else { "2a00::1" }.parse().unwrap();
    let protocol = Some(Protocol::Tls);
    let facts = Facts {
        client,
        server,
        server_port: 443,
        protocol,
        host: Some(host),
        ech: false,
        alpn: &[],
        hello_retry: false,
    };
    policy.intercepts()[0].decide(&facts).action.name()
}

#[test]
fn file_written_in_place_is_read_anew() {
    let mut place = Place::plain("in-place");
    fs::write(place.names(), "old.example\nnew.example\n").unwrap();
    place.resets("new.example");
    let view = &place.board.views()[0];
    assert_eq!((view.entries, view.reloads, &view.warning), (2, 1, &None));
}

#[test]
fn lists_that_were_read_anew_come_with_their_rules() {
    let mut place = Place::plain("come-with");
    fs::write(place.names(), "old.example\nnew.example\n").unwrap();
    let relisted = place.relisted(PATIENCE).unwrap();
    let read: Vec<_> = relisted.lists.iter().map(|list| (&list.path, list.content.entries())).collect();
    assert_eq!(read, [(&place.names(), 2)]);
}

#[test]
fn file_renamed_over_is_read_anew_time_and_again() {
    let mut place = Place::plain("rename");
    for i in 0..3 {
        let draft = place.folder.join(".names.txt.swp");
        fs::write(&draft, format!("new{i}.example\n")).unwrap();
        fs::rename(&draft, place.names()).unwrap();
        place.resets(&format!("new{i}.example"));
    }
    assert_eq!(place.board.views()[0].reloads, 3);
}

#[test]
fn file_removed_and_made_again_is_read_anew() {
    let mut place = Place::plain("remade");
    fs::remove_file(place.names()).unwrap();
    place.warns("No such file or directory (os error 2); the 1 names of before stay in force");
    assert!(place.relisted(SETTLED).is_none(), "no rules are made of a list that is not there");
    fs::write(place.names(), "new.example\n").unwrap();
    place.resets("new.example");
    assert_eq!(place.board.warnings(), [""; 0]);
}

/// As `ln -sfn` does it, and as Kubernetes mounts configuration.
#[test]
fn link_that_leads_elsewhere_is_followed() {
    let mut place = Place::new("links", |folder| {
        for (version, name) in [("v1", "old.example"), ("v2", "second.example"), ("v3", "third.example")] {
            fs::create_dir(folder.join(version)).unwrap();
            fs::write(folder.join(version).join("names.txt"), name).unwrap();
        }
        symlink("v1", folder.join("..data")).unwrap();
        symlink("..data/names.txt", folder.join("names.txt")).unwrap();
    });
    let (draft, data) = (place.folder.join("draft"), place.folder.join("..data"));
    symlink("v2", &draft).unwrap();
    fs::rename(&draft, &data).unwrap();
    place.resets("second.example");
    symlink("v3/names.txt", &draft).unwrap();
    fs::rename(&draft, place.names()).unwrap();
    place.resets("third.example");
    // And the file that it leads to now.
    fs::write(place.folder.join("v3/names.txt"), "fourth.example\n").unwrap();
    place.resets("fourth.example");
}

/// A writer that stops in between has not finished: what is there so far is no list.
#[test]
fn file_half_written_keeps_the_list_of_before() {
    let mut place = Place::plain("half");
    let mut file = fs::File::create(place.names()).unwrap();
    file.write_all(b"new.exam").unwrap();
    assert!(place.relisted(SETTLED).is_none(), "half a file was read");
    place.warns("is being written; the 1 names of before stay in force");
    file.write_all(b"ple\n").unwrap();
    drop(file);
    place.resets("new.example");
    assert_eq!(place.board.warnings(), [""; 0]);
}

#[test]
fn file_that_is_no_list_any_more_keeps_the_list_of_before() {
    let mut place = Place::plain("no-list");
    fs::write(place.names(), "<html>\n<p>502 Bad Gateway</p>\n").unwrap();
    place.warns("is no list of names: none of its 2 lines holds one");
    assert!(place.relisted(SETTLED).is_none());
    let text = metrics(&place.board.views());
    assert!(text.contains("names.txt\",kind=\"names\"} 1\n") && text.contains("weir_list_stale{"), "{text}");
    fs::write(place.names(), "new.example\n").unwrap();
    place.resets("new.example");
}

/// A download that failed leaves an empty file; who wants no entries says so.
#[test]
fn file_that_was_emptied_keeps_the_list_of_before_and_one_with_a_comment_alone_does_not() {
    let mut place = Place::plain("emptied");
    fs::write(place.names(), "").unwrap();
    place.warns("is empty; a list that is to have no entries has a line with a comment; the 1 names of before stay in force");
    assert!(place.relisted(SETTLED).is_none());
    fs::write(place.names(), "# nobody\n").unwrap();
    let relisted = place.relisted(PATIENCE).unwrap();
    assert_eq!(verdict(&relisted, "198.51.100.1", "old.example"), "allow");
    assert_eq!(place.board.warnings(), [""; 0]);
}

#[test]
fn list_of_prefixes_is_followed_on_both_families() {
    let mut place = Place::plain("prefixes");
    fs::write(place.folder.join("clients.txt"), "10.9.0.0/16\nfd77:9::/64\n").unwrap();
    let relisted = place.relisted(PATIENCE).unwrap();
    for (client, expected) in
        [("10.9.0.1", "drop"), ("192.0.2.1", "allow"), ("fd77:9::1", "drop"), ("2001:db8::1", "allow")]
    {
        assert_eq!(verdict(&relisted, client, "www.example"), expected, "{client}");
    }
    assert_eq!(verdict(&relisted, "10.9.0.1", "old.example"), "reset", "the other list is as it was");
}

#[test]
fn list_counts_on_how_often_it_was_read_anew_when_its_configuration_is_reloaded() {
    let mut place = Place::plain("counts-on");
    fs::write(place.names(), "new.example\n").unwrap();
    place.resets("new.example");
    place.board.begin(&place.config().lists);
    assert_eq!(place.board.views().iter().map(|view| view.reloads).collect::<Vec<_>>(), [1, 0]);
}

#[test]
fn another_configuration_is_followed_and_the_first_no_more() {
    let mut place = Place::plain("follow");
    let text = fs::read_to_string(place.folder.join("weir.toml")).unwrap().replace("names.txt", "other.txt");
    fs::write(place.folder.join("other.txt"), "other.example\n").unwrap();
    fs::write(place.folder.join("weir.toml"), text).unwrap();
    let (config, _) =
        config::load(&place.folder.join("weir.toml")).unwrap_or_else(|report| panic!("{report}"));
    place.board.begin(&config.lists);
    place.watch.follow(&config);
    fs::write(place.names(), "unheard.example\n").unwrap();
    assert!(place.relisted(SETTLED).is_none(), "a list of the configuration of before");
    fs::write(place.folder.join("other.txt"), "other.example\nmore.example\n").unwrap();
    place.resets("more.example");
}

/// What a reload does with a file that a failed download has left, whatever the watch makes of it.
#[test]
fn list_that_was_emptied_stays_when_its_configuration_is_read_again_and_one_with_a_comment_alone_does_not() {
    let place = Place::plain("stays");
    let before = place.config();
    fs::write(place.names(), "").unwrap();
    fs::write(place.folder.join("clients.txt"), "# nobody\n").unwrap();
    let mut again = place.config();
    let stays = keep(&mut again, &before.lists);
    let told: Vec<_> = stays.iter().map(|stay| (&stay.list.path, stay.why.clone().unwrap())).collect();
    let why = "is empty; a list that is to have no entries has a line with a comment; the 1 names of before stay in force";
    assert_eq!(told, [(&place.names(), why.to_owned())]);
    let policy = again.compile(1);
    for (client, listed) in [("10.0.0.1", "192.0.2.1"), ("fd77::1", "2001:db8::1")] {
        assert_eq!(decide(&policy, client, "old.example"), "reset", "{client}");
        assert_eq!(decide(&policy, listed, "www.example"), "allow", "{listed}: its list has no entries now");
    }
}

/// The watch has read a file after a reload has, and before what the reload read is in force.
#[test]
fn list_that_was_read_later_stays_and_one_that_was_read_earlier_does_not() {
    let place = Place::plain("newer");
    fs::write(place.folder.join("clients.txt"), "# nobody\n").unwrap();
    let mut earlier = place.config();
    fs::write(place.names(), "new.example\n").unwrap();
    fs::write(place.folder.join("clients.txt"), "192.0.2.0/24\n2001:db8::/32\n").unwrap();
    let mut later = place.config();
    assert!(keep(&mut later, &earlier.lists).is_empty());
    let stays = keep(&mut earlier, &later.lists);
    assert_eq!(stays.iter().map(|stay| stay.why.as_deref()).collect::<Vec<_>>(), [None, None]);
    let policy = earlier.compile(1);
    for (client, listed) in [("10.0.0.1", "192.0.2.1"), ("fd77::1", "2001:db8::1")] {
        assert_eq!(decide(&policy, client, "new.example"), "reset", "{client}");
        assert_eq!(decide(&policy, client, "old.example"), "allow", "{client}");
        assert_eq!(decide(&policy, listed, "www.example"), "drop", "{listed}");
    }
}
