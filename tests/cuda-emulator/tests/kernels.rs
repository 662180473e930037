//! Kernels: PTX that is loaded, launched between copies, refused, and caught at what it must not
//! do.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every call is of the emulated driver, which checks what it is given"
)]

mod common;

use common::{Context, OK, allocate, download, free, stream, upload};
use cudarc::driver::sys::{self, CUdeviceptr, CUfunction, CUmodule, CUresult, CUstream};
use cudarc::driver::{DriverError, result};
use forebay_cuda_emulator::{Emulator, Report};
use std::ffi::{CString, c_void};

const INVALID_VALUE: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;
const DEFAULT_STREAM: CUstream = std::ptr::null_mut();

const KERNELS: &str = "\
.version 7.0
.target sm_75
.address_size 64
.visible .global .align 4 .b32 factor = 3;
.visible .entry add(.param .u64 a, .param .u64 b, .param .u64 out, .param .u32 count)
{
    .reg .pred %out_of; .reg .b32 %i, %block, %threads, %count, %x, %y; .reg .b64 %a, %b, %out;
    mov.u32 %i, %tid.x; mov.u32 %block, %ctaid.x; mov.u32 %threads, %ntid.x;
    mad.lo.u32 %i, %block, %threads, %i;
    ld.param.u32 %count, [count];
    setp.ge.u32 %out_of, %i, %count;
    @%out_of ret;
    ld.param.u64 %a, [a]; ld.param.u64 %b, [b]; ld.param.u64 %out, [out];
    mad.wide.u32 %a, %i, 4, %a; mad.wide.u32 %b, %i, 4, %b; mad.wide.u32 %out, %i, 4, %out;
    ld.global.u32 %x, [%a]; ld.global.u32 %y, [%b];
    add.u32 %x, %x, %y;
    st.global.u32 [%out], %x;
    ret;
}
.visible .entry scale(.param .u64 values)
{
    .reg .b32 %i, %x, %y; .reg .b64 %values;
    mov.u32 %i, %tid.x; ld.param.u64 %values, [values]; mad.wide.u32 %values, %i, 4, %values;
    ld.global.u32 %y, [factor];
    ld.global.u32 %x, [%values];
    mul.lo.u32 %x, %x, %y;
    st.global.u32 [%values], %x;
    ret;
}
.visible .entry spin() { L: bra L; }
.visible .entry stop() { trap; }
.visible .entry races()
{
    .shared .b32 cell; .reg .b32 %i;
    mov.u32 %i, %tid.x;
    st.shared.u32 [cell], %i;
    ret;
}
.visible .entry linger(.param .u64 flag)
{
    .reg .pred %more; .reg .b32 %left; .reg .b64 %flag;
    ld.param.u64 %flag, [flag];
    mov.u32 %left, 200000;
    st.global.u32 [%flag], %left;
    L: sub.u32 %left, %left, 1;
    setp.ne.u32 %more, %left, 0;
    @%more bra L;
    st.global.u32 [%flag], %left;
    ret;
}
.visible .entry small() .maxntid 64, 1, 1 { .shared .b8 room[1024]; ret; }
";

fn load(text: &str) -> Result<CUmodule, DriverError> {
    let text = CString::new(text).unwrap();
    unsafe { result::module::load_data(text.as_ptr().cast()) }
}

fn refused(text: &str) -> CUresult {
    load(text).unwrap_err().0
}

fn function(module: CUmodule, name: &str) -> CUfunction {
    unsafe { result::module::get_function(module, CString::new(name).unwrap()) }.unwrap()
}

/// Launches along x with parameters of 8 bytes; smaller ones take the first of them.
fn launch(
    function: CUfunction,
    [grid, block]: [u32; 2],
    shared_bytes: u32,
    stream: CUstream,
    parameters: &mut [u64],
) -> CUresult {
    let mut addresses: Vec<*mut c_void> =
        parameters.iter_mut().map(|parameter| std::ptr::from_mut(parameter).cast()).collect();
    let (grid, block) = ((grid, 1, 1), (block, 1, 1));
    let launched = unsafe {
        result::launch_kernel(function, grid, block, shared_bytes, stream, &mut addresses)
    };
    launched.map_or_else(|error| error.0, |()| OK)
}

fn unload(module: CUmodule) -> CUresult {
    unsafe { sys::cuModuleUnload(module) }
}

fn synchronize() -> CUresult {
    unsafe { sys::cuCtxSynchronize() }
}

fn write(to: CUdeviceptr, words: &[u32]) {
    unsafe { result::memcpy_htod_sync(to, words) }.unwrap();
}

fn read(from: CUdeviceptr, count: usize) -> Vec<u32> {
    let words = download(from, count * 4);
    words.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn last_message(report: &Report) -> &str {
    report.violation_messages.last().unwrap()
}

#[test]
fn a_kernel_runs_between_two_copies() {
    let _turn = common::turn();
    Emulator::new().upload_bytes_per_s(100e6).workers(2).install();
    let _context = Context::of(0);
    let before = Emulator::report().devices[0].clone();
    let module = load(KERNELS).unwrap();
    let add = function(module, "add");
    const COUNT: usize = 100_000;
    let (bytes, count) = (COUNT * 4, COUNT as u64);
    let (a, b, out, stream) = (allocate(bytes), allocate(bytes), allocate(bytes), stream());
    let host = unsafe { result::malloc_host(bytes, 0) }.unwrap().cast::<u32>();
    let numbers: Vec<u32> = (0..).take(COUNT).collect();
    unsafe { host.copy_from(numbers.as_ptr(), COUNT) };
    assert_eq!(upload(a, host.cast(), bytes, stream), OK);
    assert_eq!(upload(b, host.cast(), bytes, stream), OK);
    let shape = [COUNT.div_ceil(256).try_into().unwrap(), 256];
    assert_eq!(launch(add, shape, 0, stream, &mut [a, b, out, count]), OK);
    // Back to where it came from: in order, or the kernel would read what it wrote.
    assert_eq!(unsafe { sys::cuMemcpyDtoHAsync_v2(host.cast(), out, bytes, stream) }, OK);
    unsafe { result::stream::synchronize(stream) }.unwrap();
    let arrived = unsafe { std::slice::from_raw_parts(host, COUNT) };
    assert!(arrived.iter().zip(numbers).all(|(sum, number)| *sum == 2 * number));
    let after = Emulator::report().devices[0].clone();
    assert_eq!(after.launches - before.launches, 1);
    assert!(after.lane_instructions - before.lane_instructions > 10 * count);
    assert_eq!(unload(module), OK);
    assert_eq!(
        launch(add, [1, 1], 0, stream, &mut [a, b, out, 0]),
        CUresult::CUDA_ERROR_INVALID_HANDLE
    );
    unsafe { result::free_host(host.cast()) }.unwrap();
    unsafe { result::stream::destroy(stream) }.unwrap();
    [a, b, out].into_iter().for_each(free);
}

#[test]
fn what_a_kernel_does_wrong_is_told_with_its_line_and_stays() {
    let _turn = common::turn();
    Emulator::new().devices(2).warp_instructions_max(1000).detect_races(true).install();
    let other = Context::of(1);
    let elsewhere = allocate(256);
    let _context = Context::of(0);
    let module = load(KERNELS).unwrap();
    let [values, freed] = [allocate(64), allocate(64)];
    free(freed);
    let line = |text: &str| KERNELS.lines().position(|line| line.contains(text)).unwrap() + 1;
    let read = format!("PTX line {}", line("ld.global.u32 %x, [%values];"));
    let cases = [
        ("scale", 17, values, 700, format!("byte 64 of the allocation of 64 bytes at {values:#x}")),
        ("scale", 17, values, 700, read.clone()),
        ("scale", 1, values + 2, 716, read),
        ("scale", 1, elsewhere, 700, "an address of device 1".into()),
        ("scale", 1, freed, 700, "was freed".into()),
        ("scale", 1, 0, 700, "no device address".into()),
        ("spin", 1, 0, 702, format!("PTX line {}", line("bra L"))),
        ("stop", 1, 0, 719, "trap".into()),
        ("races", 64, 0, 719, "race at byte 0x0".into()),
    ];
    for (kernel, threads, address, code, words) in cases {
        let before = Emulator::report();
        let kernel = function(module, kernel);
        assert_eq!(launch(kernel, [1, threads], 0, DEFAULT_STREAM, &mut [address]), OK);
        assert_eq!(synchronize() as u32, code);
        assert_eq!(launch(kernel, [1, 1], 0, DEFAULT_STREAM, &mut [values]) as u32, code);
        let after = Emulator::report();
        let faults = |report: &Report| report.violations_of("kernel-fault");
        assert_eq!(faults(&after) - faults(&before), 1);
        assert!(last_message(&after).contains(&words), "{words}: {}", last_message(&after));
        assert_eq!(after.devices[0].asynchronous_error, Some(code));
        assert_eq!(after.devices[1].asynchronous_error, None);
        // A new configuration forgets the error, and the module is still there.
        Emulator::new().devices(2).warp_instructions_max(1000).detect_races(true).install();
    }
    assert_eq!(unload(module), OK);
    free(values);
    other.enter();
    free(elsewhere);
}

#[test]
fn images_that_do_not_suit_are_refused() {
    let _turn = common::turn();
    Emulator::new().driver_version(12000).install();
    let _context = Context::of(0);
    let invalid = CUresult::CUDA_ERROR_INVALID_PTX;
    let no_binary = CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU;
    assert_eq!(refused("no PTX at all"), invalid);
    let newer = KERNELS.replace(".version 7.0", ".version 8.1");
    assert_eq!(refused(&newer), CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    assert_eq!(refused(&KERNELS.replace("sm_75", "sm_90")), no_binary);
    assert_eq!(refused("\x7FELF\x02"), no_binary);
    Emulator::new().driver_version(12010).install();
    let module = load(&newer).unwrap();
    let missing = unsafe { result::module::get_function(module, c"subtract".into()) };
    assert_eq!(missing.unwrap_err().0, CUresult::CUDA_ERROR_NOT_FOUND);
    assert_eq!(unload(module), OK);
    assert_eq!(unload(module), CUresult::CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn a_compiler_logs_what_is_wrong() {
    let _turn = common::turn();
    Emulator::new().install();
    let _context = Context::of(0);
    let wrong = KERNELS.replace("add.u32 %x, %x, %y;", "add.u32 %x, %x, %unknown;");
    let line = wrong.lines().position(|line| line.contains("%unknown")).unwrap() + 1;
    let load = |text: &str, room: &mut [u8]| {
        use sys::CUjit_option::{CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
        let text = CString::new(text).unwrap();
        let mut module = std::ptr::null_mut();
        let mut names = [CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, CU_JIT_ERROR_LOG_BUFFER];
        let mut values = [room.len() as *mut c_void, room.as_mut_ptr().cast()];
        let (names, options) = (names.as_mut_ptr(), values.as_mut_ptr());
        let answer = unsafe {
            sys::cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 2, names, options)
        };
        let log = String::from_utf8(room[..values[0] as usize].to_vec()).unwrap();
        assert_eq!(room[log.len()], 0);
        (answer, module, log)
    };
    let (answer, _, log) = load(&wrong, &mut [7; 4096]);
    assert_eq!(answer, CUresult::CUDA_ERROR_INVALID_PTX);
    let start = format!("ptxas application ptx input, line {line}; error   : ");
    assert!(log.starts_with(&start) && log.contains("%unknown"), "{log}");
    let (_, _, cut) = load(&wrong, &mut [7; 32]);
    assert_eq!(cut, log[..31]);
    let (answer, module, log) = load(KERNELS, &mut [7; 4096]);
    assert_eq!((answer, log.as_str()), (OK, ""));
    assert_eq!(unload(module), OK);
}

#[test]
fn launches_are_held_to_the_limits_of_the_device() {
    use sys::CUfunction_attribute_enum as Attribute;
    let _turn = common::turn();
    let dynamic = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    for (major, minor, room_kib) in [(8, 9, 99), (9, 0, 227)] {
        Emulator::new().each_device(|device| device.capability(major, minor)).install();
        let _context = Context::of(0);
        let module = load(KERNELS).unwrap();
        let small = function(module, "small");
        let attribute = |attribute| unsafe {
            result::function::get_function_attribute(small, attribute).unwrap()
        };
        assert_eq!(attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK), 64);
        assert_eq!(attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES), 1024);
        assert_eq!(attribute(Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION), 75);
        assert_eq!(attribute(dynamic), 47 << 10);
        let try_launch = |function, shape, shared| {
            let launched = launch(function, shape, shared, DEFAULT_STREAM, &mut [0]);
            assert_eq!(synchronize(), OK);
            launched
        };
        assert_eq!(try_launch(small, [1, 64], 47 << 10), OK);
        assert_eq!(try_launch(small, [1, 65], 0), INVALID_VALUE);
        assert_eq!(try_launch(small, [0, 1], 0), INVALID_VALUE);
        assert_eq!(try_launch(function(module, "spin"), [1, 1025], 0), INVALID_VALUE);
        assert_eq!(try_launch(small, [1, 64], 48 << 10), INVALID_VALUE);
        let most = (room_kib - 1) << 10;
        let set =
            |bytes| unsafe { result::function::set_function_attribute(small, dynamic, bytes) };
        assert_eq!(set(most + 1).unwrap_err().0, INVALID_VALUE);
        set(most).unwrap();
        assert_eq!(try_launch(small, [1, 64], most.cast_unsigned()), OK);
        assert_eq!(try_launch(small, [1, 64], most.cast_unsigned() + 1), INVALID_VALUE);
        let fit = |threads, bytes| {
            let mut blocks = 0;
            let answer = unsafe {
                sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, small, threads, bytes)
            };
            assert_eq!(answer, OK);
            blocks
        };
        assert!(fit(64, 0) >= 16);
        assert_eq!(fit(64, most.cast_unsigned() as usize), 1);
        assert_eq!(fit(128, 0), 0);
        assert_eq!(unload(module), OK);
    }
}

#[test]
fn the_nth_launch_fails_when_it_is_performed() {
    let _turn = common::turn();
    Emulator::new().fail_kernel(2, 719).install();
    let _context = Context::of(0);
    let module = load(KERNELS).unwrap();
    let (scale, values) = (function(module, "scale"), allocate(4));
    write(values, &[1]);
    let before = Emulator::report();
    assert_eq!(launch(scale, [1, 1], 0, DEFAULT_STREAM, &mut [values]), OK);
    assert_eq!(synchronize(), OK);
    assert_eq!(launch(scale, [1, 1], 0, DEFAULT_STREAM, &mut [values]), OK);
    assert_eq!(synchronize(), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    // Told to fail, it is nobody's fault.
    assert_eq!(Emulator::report().violation_count(), before.violation_count());
    Emulator::new().install();
    assert_eq!(read(values, 1), [3]);
    assert_eq!(unload(module), OK);
    free(values);
}

#[test]
fn variables_of_a_module_are_memory_like_any_other() {
    let _turn = common::turn();
    Emulator::new().install();
    let _context = Context::of(0);
    let module = load(KERNELS).unwrap();
    let get =
        |name: &str| unsafe { result::module::get_global(module, CString::new(name).unwrap()) };
    let (factor, bytes) = get("factor").unwrap();
    assert_eq!((bytes, get("factor").unwrap().0), (4, factor));
    assert_eq!(get("divisor").unwrap_err().0, CUresult::CUDA_ERROR_NOT_FOUND);
    assert_eq!(read(factor, 1), [3]);
    write(factor, &[5]);
    let (scale, values) = (function(module, "scale"), allocate(8));
    write(values, &[2, 7]);
    assert_eq!(launch(scale, [1, 2], 0, DEFAULT_STREAM, &mut [values]), OK);
    assert_eq!(read(values, 2), [10, 35]);
    // By its address, a kernel finds it as well.
    assert_eq!(launch(scale, [1, 1], 0, DEFAULT_STREAM, &mut [factor]), OK);
    assert_eq!(read(factor, 1), [25]);
    let mut beyond = [0u8; 8];
    let refused = unsafe { result::memcpy_dtoh_sync(&mut beyond, factor) }.unwrap_err();
    assert_eq!(refused.0, INVALID_VALUE);
    assert_eq!(unsafe { sys::cuMemFree_v2(factor) }, INVALID_VALUE);
    assert_eq!(Emulator::report().devices[0].memory.count, 1);
    assert_eq!(unload(module), OK);
    let refused = unsafe { result::memcpy_dtoh_sync(&mut beyond[..4], factor) }.unwrap_err();
    assert_eq!(refused.0, INVALID_VALUE);
    free(values);
}

#[test]
fn kernels_reach_pinned_host_memory() {
    let _turn = common::turn();
    Emulator::new().each_device(|device| device.integrated(true)).install();
    let _context = Context::of(0);
    let module = load(KERNELS).unwrap();
    let host = unsafe { result::malloc_host(256, 0) }.unwrap().cast::<u32>();
    unsafe { host.write(9) };
    let mut address = 0;
    let got = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, host.cast(), 0) };
    assert_eq!(got, OK);
    assert_eq!(launch(function(module, "scale"), [1, 1], 0, DEFAULT_STREAM, &mut [address]), OK);
    assert_eq!(synchronize(), OK);
    assert_eq!(unsafe { host.read() }, 27);
    // Freed while a kernel uses it, it stays until the kernel has ended.
    unsafe { host.write(0) };
    let before = Emulator::report().violations_of("free-in-flight");
    assert_eq!(launch(function(module, "linger"), [1, 1], 0, DEFAULT_STREAM, &mut [address]), OK);
    while unsafe { host.read_volatile() } == 0 {
        std::thread::yield_now();
    }
    unsafe { result::free_host(host.cast()) }.unwrap();
    assert_eq!(synchronize(), OK);
    assert_eq!(Emulator::report().violations_of("free-in-flight") - before, 1);
    assert_eq!(unload(module), OK);
}
