//! Follows the files of lists while weir runs.
//!
//! A thread of its own looks at the files when inotify says so, and every two seconds in any case. What changed is read
//! once it has been still for a moment and nobody is writing it; then the rules are compiled and handed to whoever
//! publishes them. The event loop and the workers do none of this.
//!
//! Until a file can be read again its list stays as it is, and [`Board`] says why.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tokio::sync::mpsc;
use weir_core::policy::Policy;

use super::board::Board;
use super::inotify::{Inotify, News};
use super::{Content, List, LoadError, Stamp, load};
use crate::config::Config;

/// A file that changed is read when it has been the same for so long.
const SETTLE: Duration = Duration::from_millis(100);
/// A file that somebody has begun to write and not closed is read when it has been the same for so long.
const WRITER: Duration = Duration::from_secs(5);
/// How often files are looked at when nothing is told of them.
const LOOK: Duration = Duration::from_secs(2);
/// Rules that wait to be published.
const WAITING: usize = 4;

/// Rules with lists that were read anew.
#[derive(Debug)]
pub struct Relisted {
    /// Of its own epoch; [`Policy::succeeding`] numbers it.
    pub policy: Policy,
    /// These lists.
    pub lists: Vec<List>,
    /// The configuration it was compiled from, as [`ListWatch::follow`] numbers them.
    generation: u64,
}

/// The thread, until it is dropped.
#[derive(Debug)]
pub struct ListWatch {
    orders: Option<Sender<Order>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    generation: u64,
    relisted: mpsc::Receiver<Relisted>,
}

/// Another configuration: its lists are followed from now on.
#[derive(Debug)]
struct Order {
    config: Box<Config>,
    generation: u64,
}

impl ListWatch {
    /// Follows the lists of `config`.
    ///
    /// # Errors
    /// No thread or no file descriptor is left.
    pub fn start(config: &Config, board: Arc<Board>) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (orders, inbox) = channel();
        let (publish, relisted) = mpsc::channel(WAITING);
        let mut eyes = Eyes {
            config: config.clone(),
            generation: 0,
            board,
            inotify: Inotify::new().inspect_err(|error| tracing::info!(%error, "lists: no inotify")).ok(),
            files: Vec::new(),
            retired: Vec::new(),
            publish,
        };
        eyes.begin();
        let thread = {
            let wake = wake.clone();
            std::thread::Builder::new()
                .name("weir-lists".to_owned())
                .spawn(move || eyes.run(&inbox, &wake))?
        };
        Ok(Self { orders: Some(orders), wake, thread: Some(thread), generation: 0, relisted })
    }

    /// The next rules that lists read anew have made. Never, when the thread has ended.
    pub async fn relisted(&mut self) -> Relisted {
        loop {
            match self.relisted.recv().await {
                Some(relisted) if relisted.generation == self.generation => return relisted,
                // Of the configuration of before.
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// As [`Self::relisted`], of what has been made by now.
    pub fn waiting(&mut self) -> Option<Relisted> {
        let mut made = std::iter::from_fn(|| self.relisted.try_recv().ok());
        made.find(|relisted| relisted.generation == self.generation)
    }

    /// Follows the lists of another configuration instead, which was published before. What is still compiled from the one
    /// of before is not told any more.
    pub fn follow(&mut self, config: &Config) {
        self.generation += 1;
        let order = Order { config: Box::new(config.clone()), generation: self.generation };
        if let Some(orders) = &self.orders {
            // The thread ends only with this sender.
            drop(orders.send(order));
        }
        self.wake();
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for ListWatch {
    fn drop(&mut self) {
        self.orders = None;
        // A thread that waits for room is told that nobody reads any more.
        self.relisted.close();
        self.wake();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// What the thread knows.
#[derive(Debug)]
struct Eyes {
    config: Config,
    generation: u64,
    board: Arc<Board>,
    inotify: Option<Inotify>,
    /// In the order of the configuration's lists.
    files: Vec<File>,
    /// Lists of before that connections or workers still look at; the last to let go of a million names is this thread.
    retired: Vec<Content>,
    publish: mpsc::Sender<Relisted>,
}

/// A file that is another one than was read.
#[derive(Debug, Default)]
struct File {
    /// What it has been since when.
    seen: Option<(Look, Instant)>,
    /// Somebody has begun to write it.
    written: bool,
    /// What was read and is no list; nothing is done until it changes.
    refused: Option<Look>,
}

/// What is found where a list should be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Look {
    File(Stamp),
    Nothing(String),
}

impl Look {
    fn at(list: &List) -> Self {
        Stamp::of(&list.path).map_or_else(|error| Self::Nothing(error.to_string()), Self::File)
    }
}

impl Eyes {
    fn begin(&mut self) {
        self.files = self.config.lists.iter().map(|_| File::default()).collect();
        self.watch();
    }

    /// Links may lead elsewhere by now.
    fn watch(&mut self) {
        let Some(inotify) = &mut self.inotify else { return };
        inotify.clear();
        for (number, list) in self.config.lists.iter().enumerate() {
            inotify.add(number, &list.path);
        }
    }

    fn run(&mut self, orders: &Receiver<Order>, wake: &OwnedFd) {
        loop {
            self.wait(wake);
            loop {
                match orders.try_recv() {
                    Ok(Order { config, generation }) => {
                        self.retired.extend(self.config.lists.drain(..).map(|list| list.content));
                        (self.config, self.generation) = (*config, generation);
                        self.begin();
                    }
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
                }
            }
            self.note_news();
            self.look();
            self.retired.retain(|content| !content.is_unshared());
        }
    }

    /// Until something happens, or it is time to look.
    fn wait(&self, wake: &OwnedFd) {
        let is_unsettled = self.files.iter().any(|file| file.seen.is_some());
        let time = if is_unsettled { SETTLE / 2 } else { LOOK };
        let timeout = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
        // With a change under way the clock alone decides: a writer would wake us for every block.
        if let Some(inotify) = self.inotify.as_ref().filter(|_| !is_unsettled) {
            fds.push(PollFd::new(inotify, PollFlags::IN));
        }
        let _ = poll(&mut fds, Some(&timeout));
        let _ = rustix::io::read(wake, &mut [0_u8; 8]);
    }

    fn note_news(&mut self) {
        let Some(inotify) = &self.inotify else { return };
        match inotify.take() {
            Some(news) => {
                for news in news {
                    let (number, written) = match news {
                        News::Writing(number) => (number, true),
                        News::Done(number) => (number, false),
                    };
                    if let Some(file) = self.files.get_mut(number) {
                        file.written = written;
                    }
                }
            }
            // Whether one is being written is not known: it has the time that others have.
            None => self.files.iter_mut().for_each(|file| file.written = false),
        }
    }

    /// Reads what changed and has settled.
    fn look(&mut self) {
        let now = Instant::now();
        let settled: Vec<usize> =
            (0..self.files.len()).filter(|number| self.has_settled(*number, now)).collect();
        let read: Vec<usize> = settled.into_iter().filter(|number| self.read(*number)).collect();
        if !read.is_empty() {
            self.watch();
            let lists = read.iter().filter_map(|number| self.config.lists.get(*number).cloned()).collect();
            let relisted = Relisted { policy: self.config.compile(0), lists, generation: self.generation };
            // Nobody listens when weir is about to stop.
            drop(self.publish.blocking_send(relisted));
        }
    }

    /// Whether a file is another one than was read, and has been so for long enough.
    fn has_settled(&mut self, number: usize, now: Instant) -> bool {
        let (Some(file), Some(list)) = (self.files.get_mut(number), self.config.lists.get(number)) else {
            return false;
        };
        let look = Look::at(list);
        if look == Look::File(list.stamp) {
            (file.seen, file.refused) = (None, None);
            // What is told may be of the configuration of before.
            self.board.warn(list, None);
            return false;
        }
        if file.refused.as_ref() == Some(&look) {
            file.seen = None;
            return false;
        }
        match &file.seen {
            Some((seen, since)) if *seen == look => {
                let wait = if file.written { WRITER } else { SETTLE };
                now.duration_since(*since) >= wait
            }
            _ => {
                file.seen = Some((look, now));
                if file.written {
                    self.board.warn(list, Some(list.still("is being written")));
                }
                false
            }
        }
    }

    /// Reads a file anew. True: its list is another one now.
    fn read(&mut self, number: usize) -> bool {
        let (Some(file), Some(old)) = (self.files.get_mut(number), self.config.lists.get(number)) else {
            return false;
        };
        let Some((look, _)) = file.seen.take() else { return false };
        let loaded = load(&old.path, old.content.kind())
            .and_then(|list| list.refusal_after(old).map_or(Ok(list), Err));
        match loaded {
            Ok(list) => {
                tracing::info!(
                    list = %list.path.display(),
                    entries = list.content.entries(),
                    before = old.content.entries(),
                    bad_lines = list.bad.count,
                    ms = list.took.as_millis() as u64,
                    "list read anew"
                );
                (file.refused, file.written) = (None, false);
                self.board.read(&list);
                self.retired.extend(self.config.replace_list(list).map(|old| old.content));
                true
            }
            Err(LoadError::Changing) => false,
            Err(error) => {
                let warning = old.still(&error.to_string());
                tracing::warn!("list {} {warning}", old.path.display());
                self.board.warn(old, Some(warning));
                file.refused = Some(look);
                false
            }
        }
    }
}
