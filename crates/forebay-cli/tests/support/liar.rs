//! A filesystem that lies: it serves the bytes of one model by FUSE, each file by a script of its
//! own that says which reads are answered otherwise.
//!
//! A file is opened either past the page cache (`FOPEN_DIRECT_IO`: each read arrives as it was
//! asked for, and its count is what the reader gets) or through it. What the kernel asks for on
//! behalf of the page cache it believes: a count that is too small is the end of the file, and the
//! rest of the page becomes zeroes. No reader can tell those from the file's, so counts are only
//! shortened where the page cache has no part.
//!
//! It is served by threads of the test, and loads are processes of their own: a process that
//! touches a mapping of what it serves itself may hold, in the fault, what its server waits for.

use forebay_io::Errno;
use fuser::{
    BackgroundSession, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, Request, Session,
};
use nix::mount::{MntFlags, umount2};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// Of handles: whether they were opened with `O_DIRECT`.
const BUFFERED: u64 = 0;
const DIRECT: u64 = 1;

/// Replies are put back by so much, less for each next one of a group of so many.
const REVERSED_STEP: Duration = Duration::from_millis(3);
const REVERSED_GROUP: u32 = 6;

/// Which reads a rule is about, by how the file was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Direct,
    Buffered,
    Any,
}

/// What a read is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This errno, and no byte.
    Errno(Errno),
    /// At most so many bytes; none is what the end of a file looks like.
    Short(u32),
    /// Everything, so much later.
    Late(Duration),
    /// Everything, each of a few later than those that are asked for after it.
    Reversed,
    /// Nothing, until [`Liar::release`].
    Never,
    /// Everything, once this has happened.
    Meanwhile(Change),
}

/// What becomes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It has this length from now on; zeroes are added.
    Length(u64),
    /// Its time of the last write is another.
    Touched,
    /// Its name is another file's from now on, of the same bytes.
    Replaced,
}

/// For which reads, and what.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) of: Of,
    /// Reads of any byte of this range.
    pub(crate) range: Range<u64>,
    /// How many of them pass before it, then how many it is for.
    pub(crate) skip: u64,
    pub(crate) times: u64,
    pub(crate) answer: Answer,
}

impl Rule {
    /// For every read of that kind.
    pub(crate) fn new(of: Of, answer: Answer) -> Self {
        Self { of, range: 0..u64::MAX, skip: 0, times: u64::MAX, answer }
    }

    /// Only for reads that reach past `offset`.
    pub(crate) fn from(mut self, offset: u64) -> Self {
        self.range.start = offset;
        self
    }

    /// Only for reads that bring the byte at `offset`.
    pub(crate) fn only(mut self, offset: u64) -> Self {
        self.range = offset..offset + 1;
        self
    }

    /// Only for so many of them.
    pub(crate) fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Whether this read is its business; counts.
    fn takes(&mut self, handle: u64, range: &Range<u64>) -> bool {
        let of = match self.of {
            Of::Direct => handle == DIRECT,
            Of::Buffered => handle == BUFFERED,
            Of::Any => true,
        };
        let touches = range.start < self.range.end && range.end > self.range.start;
        if !of || !touches || self.times == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}

/// How a file behaves; by default as it should, past the page cache.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    /// What an open with `O_DIRECT` is answered, and one without.
    pub(crate) direct_open: Option<Errno>,
    pub(crate) buffered_open: Option<Errno>,
    /// Whether reads go through the page cache.
    pub(crate) cached: bool,
    /// How long the kernel may believe what it knows of the file.
    pub(crate) believed_for: Duration,
    /// Whether the name is another file's once it has been opened.
    pub(crate) replaced_when_opened: bool,
    /// For each read, the first that takes it.
    pub(crate) rules: Vec<Rule>,
}

impl Script {
    pub(crate) fn of(rules: impl IntoIterator<Item = Rule>) -> Self {
        Self { rules: rules.into_iter().collect(), ..Self::default() }
    }
}

/// A file, as its readers know it.
struct File {
    inode: u64,
    script: Script,
    state: Mutex<State>,
}

struct State {
    bytes: u64,
    /// Times it was written to.
    writes: u64,
    rules: Vec<Rule>,
    /// Answers that were otherwise than they would have been.
    struck: u64,
    /// Every read: by which handle, of what, and what a rule said.
    asked: Vec<(u64, Range<u64>, Option<Answer>)>,
    reversed: u32,
    is_released: bool,
    held: Vec<(ReplyData, Range<u64>)>,
}

struct Shared {
    contents: Vec<u8>,
    by_inode: Mutex<BTreeMap<u64, Arc<File>>>,
    by_name: Mutex<BTreeMap<String, u64>>,
    late: Mutex<Vec<JoinHandle<()>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl File {
    fn attributes(&self) -> FileAttr {
        let state = locked(&self.state);
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + state.writes);
        FileAttr { size: state.bytes, mtime: modified, ..attributes(self.inode) }
    }

    fn change(&self, shared: &Shared, change: Change) {
        match change {
            Change::Length(bytes) => {
                let mut state = locked(&self.state);
                state.bytes = bytes;
                state.writes += 1;
            }
            Change::Touched => locked(&self.state).writes += 1,
            Change::Replaced => shared.replace(self),
        }
    }
}

fn attributes(inode: u64) -> FileAttr {
    let then = SystemTime::UNIX_EPOCH;
    let (kind, perm) = match INodeNo(inode) {
        INodeNo::ROOT => (FileType::Directory, 0o755),
        _ => (FileType::RegularFile, 0o444),
    };
    FileAttr {
        ino: INodeNo(inode),
        size: 0,
        blocks: 0,
        atime: then,
        mtime: then,
        ctime: then,
        crtime: then,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Shared {
    fn file(&self, inode: INodeNo) -> Option<Arc<File>> {
        locked(&self.by_inode).get(&inode.0).cloned()
    }

    /// A new file of the model's bytes; its inode.
    fn add(&self, script: Script) -> u64 {
        let mut files = locked(&self.by_inode);
        let inode = INodeNo::ROOT.0 + 1 + files.len() as u64;
        let state = State {
            bytes: self.contents.len() as u64,
            writes: 0,
            rules: script.rules.clone(),
            struck: 0,
            asked: Vec::new(),
            reversed: 0,
            is_released: false,
            held: Vec::new(),
        };
        files.insert(inode, Arc::new(File { inode, script, state: Mutex::new(state) }));
        inode
    }

    fn replace(&self, file: &File) {
        let other = self.add(Script::default());
        let mut names = locked(&self.by_name);
        if let Some(inode) = names.values_mut().find(|inode| **inode == file.inode) {
            *inode = other;
        }
    }

    /// Answers with what the file has of `range`, but for `most` bytes at most.
    fn answer(&self, file: &File, reply: ReplyData, range: Range<u64>, most: u32) {
        let end = range.end.min(locked(&file.state).bytes);
        let wanted = usize::try_from(end.saturating_sub(range.start)).unwrap().min(most as usize);
        let start = usize::try_from(range.start).unwrap().min(self.contents.len());
        let has = wanted.min(self.contents.len() - start);
        let bytes = &self.contents[start..start + has];
        if has == wanted {
            return reply.data(bytes);
        }
        let mut bytes = bytes.to_vec();
        bytes.resize(wanted, 0);
        reply.data(&bytes);
    }

    fn read(self: &Arc<Self>, file: &Arc<File>, handle: u64, range: Range<u64>, reply: ReplyData) {
        let mut state = locked(&file.state);
        let rule = state.rules.iter_mut().find_map(|rule| {
            let takes = rule.takes(handle, &range);
            takes.then_some(rule.answer)
        });
        state.asked.push((handle, range.clone(), rule));
        let Some(answer) = rule else {
            drop(state);
            return self.answer(file, reply, range, u32::MAX);
        };
        state.struck += 1;
        let delay = match answer {
            Answer::Errno(errno) => return reply.error(fuser::Errno::from_i32(errno as i32)),
            Answer::Short(most) => {
                drop(state);
                return self.answer(file, reply, range, most);
            }
            Answer::Never if !state.is_released => return state.held.push((reply, range)),
            Answer::Never => Duration::ZERO,
            Answer::Late(delay) => delay,
            Answer::Reversed => {
                state.reversed += 1;
                REVERSED_STEP * (REVERSED_GROUP - state.reversed % REVERSED_GROUP)
            }
            Answer::Meanwhile(change) => {
                drop(state);
                file.change(self, change);
                return self.answer(file, reply, range, u32::MAX);
            }
        };
        drop(state);
        let (shared, file) = (Arc::clone(self), Arc::clone(file));
        let later = std::thread::spawn(move || {
            std::thread::sleep(delay);
            shared.answer(&file, reply, range, u32::MAX);
        });
        locked(&self.late).push(later);
    }

    fn release(&self, file: &File) {
        let mut state = locked(&file.state);
        state.is_released = true;
        let held = std::mem::take(&mut state.held);
        drop(state);
        held.into_iter().for_each(|(reply, range)| self.answer(file, reply, range, u32::MAX));
    }
}

/// What the kernel talks to.
struct Served {
    shared: Arc<Shared>,
    wanted: InitFlags,
}

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // What it has not got, the mount says by itself.
        let _ = config.add_capabilities(self.wanted & config.capabilities());
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_str().filter(|_| parent == INodeNo::ROOT);
        let inode = name.and_then(|name| locked(&self.shared.by_name).get(name).copied());
        match inode.and_then(|inode| self.shared.file(INodeNo(inode))) {
            Some(file) => {
                let (name, attributes) = (Duration::ZERO, file.script.believed_for);
                reply.entry_with_ttls(&attributes, &name, &file.attributes(), Generation(0));
            }
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.shared.file(inode) {
            Some(file) => reply.attr(&file.script.believed_for, &file.attributes()),
            None if inode == INodeNo::ROOT => reply.attr(&Duration::ZERO, &attributes(inode.0)),
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Some(file) = self.shared.file(inode) else {
            return reply.error(fuser::Errno::ENOENT);
        };
        let is_direct = flags.0 & libc_o_direct() != 0;
        let script = &file.script;
        let refused = if is_direct { script.direct_open } else { script.buffered_open };
        if let Some(errno) = refused {
            locked(&file.state).struck += 1;
            return reply.error(fuser::Errno::from_i32(errno as i32));
        }
        if script.replaced_when_opened && !is_direct {
            locked(&file.state).struck += 1;
            self.shared.replace(&file);
        }
        let past_cache =
            if script.cached { FopenFlags::empty() } else { FopenFlags::FOPEN_DIRECT_IO };
        reply.opened(FileHandle(if is_direct { DIRECT } else { BUFFERED }), past_cache);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.shared.file(inode) {
            Some(file) => {
                let range = offset..offset + u64::from(size);
                self.shared.read(&file, handle.0, range, reply);
            }
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}

fn libc_o_direct() -> i32 {
    nix::fcntl::OFlag::O_DIRECT.bits()
}

/// What the filesystem says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What is read past the page cache can be mapped all the same.
    Plain,
    /// It can't.
    Unmappable,
    /// As plain, and the kernel need not wait for the answer to one direct read before it asks for
    /// the next: they complete as those of a disk do.
    Asynchronous,
}

/// The filesystem, mounted until dropped.
pub(crate) struct Liar {
    shared: Arc<Shared>,
    point: PathBuf,
    session: Option<BackgroundSession>,
}

/// A file of it.
pub(crate) struct Lie {
    pub(crate) path: PathBuf,
    inode: u64,
}

impl Liar {
    /// Serves `contents` at `point`.
    pub(crate) fn mount(point: &Path, contents: Vec<u8>, kind: Kind) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            contents,
            by_inode: Mutex::default(),
            by_name: Mutex::default(),
            late: Mutex::default(),
        });
        let mut config = Config::default();
        let name = MountOption::FSName("forebay-liar".to_owned());
        config.mount_options = vec![MountOption::RO, name];
        let wanted = match kind {
            Kind::Plain => InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            Kind::Unmappable => InitFlags::empty(),
            Kind::Asynchronous => InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP | InitFlags::FUSE_ASYNC_DIO,
        };
        let served = Served { shared: Arc::clone(&shared), wanted };
        let session = Some(Session::new(served, point, &config)?.spawn()?);
        Ok(Self { shared, point: point.to_owned(), session })
    }

    /// A new file, which no page cache knows.
    pub(crate) fn serve(&self, script: Script) -> Lie {
        let inode = self.shared.add(script);
        let name = format!("{inode}.safetensors");
        locked(&self.shared.by_name).insert(name.clone(), inode);
        Lie { path: self.point.join(name), inode }
    }

    fn file(&self, lie: &Lie) -> Arc<File> {
        self.shared.file(INodeNo(lie.inode)).expect("files stay until the end")
    }

    /// How many answers were otherwise than they would have been.
    pub(crate) fn struck(&self, lie: &Lie) -> u64 {
        locked(&self.file(lie).state).struck
    }

    /// Every read so far, for people.
    pub(crate) fn asked(&self, lie: &Lie) -> String {
        let file = self.file(lie);
        let state = locked(&file.state);
        let read = |(handle, range, answer): &(u64, Range<u64>, Option<Answer>)| {
            let kind = if *handle == DIRECT { "direct" } else { "buffered" };
            let answer = answer.map_or(String::new(), |answer| format!(": {answer:?}"));
            format!("  {kind} {range:?}{answer}\n")
        };
        state.asked.iter().map(read).collect()
    }

    /// How many reads wait for [`Liar::release`].
    pub(crate) fn held(&self, lie: &Lie) -> usize {
        locked(&self.file(lie).state).held.len()
    }

    /// Answers all that were never to be answered, and holds no more of them back.
    pub(crate) fn release(&self, lie: &Lie) {
        self.shared.release(&self.file(lie));
    }

    /// Ends all that is under way with an error, and everything that comes after.
    pub(crate) fn abort(&self) {
        // Files are open: that it can't be unmounted is as it should be.
        let _ = umount2(&self.point, MntFlags::MNT_FORCE);
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        // Ended, so that nobody waits for it, and gone.
        let _ = umount2(&self.point, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        if let Some(session) = self.session.take() {
            // What it ended with says nothing: it was cut off.
            let _ = session.guard.join();
        }
        let files: Vec<_> = locked(&self.shared.by_inode).values().cloned().collect();
        files.iter().for_each(|file| self.shared.release(file));
        let late = std::mem::take(&mut *locked(&self.shared.late));
        late.into_iter().for_each(|thread| drop(thread.join()));
        if !std::thread::panicking() {
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
            assert!(!mounts.contains(self.point.to_str().unwrap()), "it is still mounted");
        }
    }
}
