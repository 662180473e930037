//! A kernel that forbids system calls to one thread, the way container runtimes forbid io_uring.

use forebay_io::Errno;

/// From now on, the calling thread and the threads it starts get `errno` from the system calls
/// `numbers`. There is no way back: call it on a thread that ends soon.
///
/// # Errors
/// `EINVAL` on kernels without seccomp filters, `EPERM` or `EACCES` inside some sandboxes. Nothing
/// is forbidden then.
pub fn forbid(numbers: &[libc::c_long], errno: Errno) -> Result<(), Errno> {
    install(program(numbers, errno))
}

/// As [`forbid`], for calls of `number` whose argument `argument`, counted from 0, is `value`.
///
/// # Errors
/// As [`forbid`].
pub fn forbid_with(
    number: libc::c_long,
    argument: u8,
    value: i32,
    errno: Errno,
) -> Result<(), Errno> {
    let number = u32::try_from(number).expect("a system call's number");
    // The low half of an argument, which is all of an `int`.
    let low_half = 16 + 8 * u32::from(argument) + if cfg!(target_endian = "big") { 4 } else { 0 };
    install(vec![
        step(LOAD_WORD, 0, 0, 0),
        step(JUMP_IF_EQUAL, 0, 3, number),
        step(LOAD_WORD, 0, 0, low_half),
        step(JUMP_IF_EQUAL, 0, 1, value.cast_unsigned()),
        step(RETURN, 0, 0, refusal(errno)),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ])
}

fn install(mut filter: Vec<libc::sock_filter>) -> Result<(), Errno> {
    // SAFETY: sets a flag of the thread, with constant arguments.
    let answer = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    Errno::result(answer)?;
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::E2BIG)?,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which lives until after the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            std::ptr::from_ref(&program),
        )
    };
    Errno::result(answer).map(drop)
}

const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

fn step(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).expect("all codes have 16 bits"), jt, jf, k }
}

fn refusal(errno: Errno) -> u32 {
    libc::SECCOMP_RET_ERRNO | (errno as i32).unsigned_abs()
}

/// Load the number; for each forbidden one, return the errno if it is equal; else allow.
fn program(numbers: &[libc::c_long], errno: Errno) -> Vec<libc::sock_filter> {
    let mut program = vec![step(LOAD_WORD, 0, 0, 0)];
    for &number in numbers {
        let number = u32::try_from(number).expect("a system call's number");
        program.push(step(JUMP_IF_EQUAL, 0, 1, number));
        program.push(step(RETURN, 0, 0, refusal(errno)));
    }
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}
