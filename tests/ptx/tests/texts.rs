//! Texts: what is refused and where, and that no text makes the parser panic.

#![allow(clippy::cast_possible_truncation, reason = "texts are short")]

mod common;

use common::{HEAD, kernel};
use forebay_ptx::{Allocations, Limits, Module};

const SOURCES: [&str; 5] = [
    include_str!("data/matmul_f32.ptx"),
    include_str!("data/matmul_half.ptx"),
    include_str!("data/gemv_q.ptx"),
    include_str!("data/sweep.compute_75.ptx"),
    include_str!("data/sweep.compute_90.ptx"),
];

#[test]
fn everything_that_nvrtc_made_is_understood() {
    for source in SOURCES {
        let module = Module::parse(source).unwrap_or_else(|error| panic!("{error}"));
        assert!(!module.entries().is_empty());
    }
}

#[test]
fn what_is_refused_is_named_with_its_place() {
    for (body, cause) in [
        ("wmma.load.a.sync.aligned.row.m16n16k16.global.f16 {%i}, [%in], %i;", "`wmma`"),
        ("add.s32 %i, %i;", "3 operands"),
        ("add.s32 %i, %i, %nothing;", "`%nothing` is not declared"),
        ("add.weird.s32 %i, %i, %i;", "`.weird`"),
        ("min.f32 %i, %i, %i, %i;", "takes 3 operands"),
        ("bra NOWHERE;", "no label `NOWHERE`"),
        ("ld.global.v2.u32 %i, [%in];", "of 1 elements"),
        ("mov.u32 %i, 12z;", "number `12z`"),
        ("call missing, ();", "`missing` is not declared"),
        ("cp.async.bulk.commit_group;", "cp"),
        ("add.s32 %i, %i, %i", "expected `,`"),
        ("mov.u32 %i, %out|%in;", "must be a register or a number"),
    ] {
        let text = kernel(&format!("\n  {body}"));
        let error = Module::parse(&text).unwrap_err();
        assert!(error.to_string().contains(cause), "{body}: {error}");
        let line = text.lines().position(|line| line.contains(body)).unwrap() as u32 + 1;
        assert!(error.line == line || error.line == line + 1, "{error}, not in line {line}");
        assert!(error.column > 0);
    }
    assert!(Module::parse("").unwrap_err().to_string().contains("no .version"));
    assert!(Module::parse("/* open").unwrap_err().to_string().contains("does not end"));
}

#[test]
fn directives_for_debuggers_are_skipped() {
    let text = format!(
        "{HEAD}.file 1 \"a.cu\"\n.visible .entry k() {{ .loc 1 2 3, function_name $L, inlined_at 1 2 3\n\
         .pragma \"nounroll\"; ret; }}\n.section .debug_str {{ .b8 1, 2 {{ }} }}\n"
    );
    assert_eq!(Module::parse(&text).unwrap().entries().len(), 1);
}

#[test]
fn functions_that_call_themselves_are_refused() {
    let text = format!(
        "{HEAD}.func f();\n.func g() {{ call f; ret; }}\n.func f() {{ call g; ret; }}\n\
         .visible .entry k() {{ call f; ret; }}"
    );
    let error = Module::parse(&text).unwrap_err();
    assert!(error.to_string().contains("calls itself"), "{error}");
}

/// Mutations of real texts: words swapped, doubled, dropped or broken. Most are refused, some
/// parse, and those are run for a moment; nothing may panic.
#[test]
fn no_text_panics() {
    let mut random = fastrand::Rng::with_seed(30);
    let (mut parsed, mut memory) = (0, Allocations::new());
    let buffer = memory.allocate(&[0; 4096]);
    for round in 0..1500 {
        let source = SOURCES[random.usize(..SOURCES.len())];
        let mut text = source.as_bytes().to_vec();
        // Keep texts short, so that many are tried.
        if text.len() > 12000 && round % 8 != 0 {
            let tail = text.len() - random.usize(0..3000);
            text = [&text[..random.usize(3000..9000)], &text[tail..]].concat();
        }
        for _ in 0..random.usize(1..4) {
            mutate(&mut text, &mut random);
        }
        let text = String::from_utf8_lossy(&text);
        let Ok(module) = Module::parse(&text) else { continue };
        parsed += 1;
        for entry in module.entries().iter().take(if round % 4 == 0 { 1 } else { 0 }) {
            let parameters: Vec<u8> =
                buffer.to_le_bytes().into_iter().cycle().take(entry.parameter_bytes).collect();
            let limits = Limits { warp_instructions_max: 3000, threads: 1, ..Limits::default() };
            let _ =
                module.launch(&entry.name, [1; 3], [40, 1, 1], 64, &parameters, &memory, &limits);
        }
    }
    assert!(parsed > 20, "{parsed} of the mutated texts parsed");
}

fn mutate(text: &mut Vec<u8>, random: &mut fastrand::Rng) {
    let at = random.usize(..text.len());
    let word = |from: usize| {
        let start =
            (0..from).rev().find(|at| text[*at].is_ascii_whitespace()).map_or(0, |at| at + 1);
        let end = (from..text.len()).find(|at| text[*at].is_ascii_whitespace());
        start..end.unwrap_or(text.len()).max(start)
    };
    let range = word(at);
    match random.u32(..6) {
        0 => text[at] = random.u8(..),
        1 => drop(text.drain(range)),
        2 => {
            let other = text[word(random.usize(..text.len()))].to_vec();
            drop(text.splice(range, other));
        }
        3 => {
            let copy = text[range.clone()].to_vec();
            drop(text.splice(range.end..range.end, copy));
        }
        4 => drop(text.splice(at..at, *b"4294967295")),
        _ => text.truncate(at.max(100)),
    }
}
