//! `forebay bench --plot`: the picture is an SVG that says what was measured, and nothing in it
//! lies on anything else.

#[path = "support/cuda.rs"]
mod cuda;
mod support;

use cuda::run_on;
use forebay_cuda_emulator::Emulator;
use roxmltree::{Document, Node};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use support::{command, failure, json, run, scratch, text};

fn synthetic(folder: &Path) -> PathBuf {
    let model = folder.join("a <model> & 'more'.gguf");
    assert!(run(&["synth", text(&model), "--size", "5MiB"]).status.success());
    model
}

/// Where a text is, about: every letter is taken to be as wide as a wide one.
#[derive(Debug)]
struct Written {
    text: String,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

fn number(node: Node<'_, '_>, name: &str) -> f64 {
    let value = node.attribute(name).unwrap_or_else(|| panic!("no {name} at {node:?}"));
    value.parse().unwrap_or_else(|_| panic!("{name}=\"{value}\" is no number"))
}

impl Written {
    fn of(node: Node<'_, '_>) -> Self {
        assert_eq!(node.attribute("font-family"), Some("sans-serif"));
        let text = node.text().unwrap().trim().to_owned();
        let (x, y, size) = (number(node, "x"), number(node, "y"), number(node, "font-size"));
        let width = text.chars().count() as f64 * size * 0.6;
        let left = match node.attribute("text-anchor").unwrap() {
            "start" => 0.0,
            "middle" => -width / 2.0,
            "end" => -width,
            anchor => panic!("{anchor}"),
        };
        // The baseline is this far below `y`.
        let below = match node.attribute("dy").unwrap() {
            "0.76em" => 0.76 * size,
            "0.5ex" => 0.25 * size,
            "-0.5ex" => -0.25 * size,
            shift => panic!("{shift}"),
        };
        let (top, bottom) = (below - 0.76 * size, below + 0.2 * size);
        let turned = node.attribute("transform").is_some_and(|it| it.starts_with("rotate(270"));
        let (left, right, top, bottom) = if turned {
            (top, bottom, left, left + width)
        } else {
            (left, left + width, top, bottom)
        };
        Self { text, left: x + left, right: x + right, top: y + top, bottom: y + bottom }
    }

    fn overlaps(&self, other: &Self) -> bool {
        let apart = self.right <= other.left || other.right <= self.left;
        !apart && self.top < other.bottom && other.top < self.bottom
    }
}

/// The texts of a picture, all of them inside it and none on another.
fn texts(svg: &str) -> Vec<Written> {
    let document = Document::parse(svg).unwrap_or_else(|error| panic!("{error} in {svg}"));
    let root = document.root_element();
    let (width, height) = (number(root, "width"), number(root, "height"));
    assert_eq!(root.attribute("viewBox"), Some(format!("0 0 {width} {height}").as_str()));
    let nodes = document
        .descendants()
        .filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "text")));
    let texts: Vec<Written> = nodes.map(Written::of).collect();
    for (index, text) in texts.iter().enumerate() {
        let inside =
            text.left >= 0.0 && text.right <= width && text.top >= 0.0 && text.bottom <= height;
        assert!(inside, "outside of {width} x {height}: {text:?}");
        for other in &texts[index + 1..] {
            assert!(!text.overlaps(other), "{text:?} and {other:?}");
        }
    }
    texts
}

fn count(texts: &[Written], wanted: &str) -> usize {
    texts.iter().filter(|it| it.text == wanted).count()
}

fn points(svg: &str) -> usize {
    let document = Document::parse(svg).unwrap();
    document.descendants().filter(|node| node.tag_name().name() == "circle").count()
}

#[test]
fn every_row_has_a_bar_and_a_curve_however_many_there_are() {
    let folder = scratch();
    let model = synthetic(folder.path());
    let svg = folder.path().join("bench.svg");
    let all = "auto,dio,none,mmap,mlock,mlock-strict";
    for (modes, cache, repeat, rows) in [
        ("dio", "both", "1", 2),
        ("dio,mmap", "cold", "3", 2),
        ("auto", "warm", "2", 1),
        (all, "both", "1", 12),
    ] {
        let flags = ["--modes", modes, "--cache", cache, "--repeat", repeat, "--device", "host"];
        let mut arguments = vec!["bench", text(&model), "--json", "--plot", text(&svg)];
        arguments.extend(flags);
        let report = json(&arguments);
        assert_eq!(report["rows"].as_array().unwrap().len(), rows);
        let drawn = fs::read_to_string(&svg).unwrap();
        let texts = texts(&drawn);
        for row in report["rows"].as_array().unwrap() {
            let part = |key: &str| row[key].as_str().unwrap();
            let label = format!("{} · {} · {}", part("mode"), part("device"), part("cache"));
            assert_eq!(count(&texts, &label), 2, "{label}");
            let rate = format!("{:.2} GiB/s", row["gib_per_s"].as_f64().unwrap());
            assert!(count(&texts, &rate) >= 1, "no {rate}");
        }
        let repeat: usize = repeat.parse().unwrap();
        assert_eq!(points(&drawn), rows * repeat);
        let has = |wanted: &str| texts.iter().any(|it| it.text.contains(wanted));
        assert!(has("a <model> & 'more'.gguf") && has("GiB/s") && has("seconds since"));
        let ceiling = report["ceiling"]["gib_per_s"].as_f64().unwrap();
        assert!(has(&format!("storage ceiling {ceiling:.2} GiB/s")));
        assert!(drawn.contains("prefers-color-scheme: dark"));
    }
}

#[test]
fn devices_have_a_ceiling_of_their_own_and_an_emulation_says_so() {
    let folder = scratch();
    let (model, svg) = (synthetic(folder.path()), folder.path().join("bench.svg"));
    for (devices, device) in [(1, "cuda"), (4, "cuda:all")] {
        let emulator = Emulator::new().devices(devices).upload_bytes_per_s(2e9);
        let arguments = ["bench", text(&model), "--device", device, "--json", "--plot", text(&svg)];
        let report = run_on(&emulator, &arguments).json();
        let texts = texts(&fs::read_to_string(&svg).unwrap());
        let has = |wanted: &str| texts.iter().any(|it| it.text.contains(wanted));
        let ceiling = report["upload_ceiling"]["gib_per_s"].as_f64().unwrap();
        assert!(has(&format!("upload ceiling {ceiling:.2} GiB/s")));
        assert!(has("EMULATED: no rate of hardware") && has("loads to cuda:0"));
        assert!(has("seconds since the devices were ready"));
        let named = report["rows"][1]["device"].as_str().unwrap();
        assert_eq!(count(&texts, &format!("dio · {named} · cold")), 2);
    }
}

#[test]
fn a_picture_that_can_not_be_written_is_an_error_before_anything_is_measured() {
    let folder = scratch();
    let model = synthetic(folder.path());
    let nowhere = folder.path().join("absent/bench.svg");
    for path in [&nowhere, folder.path()] {
        let said = failure(&["bench", text(&model), "--plot", text(path)]);
        assert!(said.contains(text(path)) && said.contains("can't be written"), "{said}");
        assert!(!said.contains("round 1"), "{said}");
    }
    let output = command().args(["bench", text(&model), "--plot", "bench.png"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_bench_that_fails_leaves_no_picture_and_keeps_the_old_one() {
    let folder = scratch();
    let (new, old) = (folder.path().join("new.svg"), folder.path().join("old.svg"));
    fs::write(&old, "kept").unwrap();
    for path in [&new, &old] {
        failure(&["bench", text(&folder.path().join("absent.gguf")), "--plot", text(path)]);
    }
    assert!(!new.exists());
    assert_eq!(fs::read_to_string(&old).unwrap(), "kept");
}

#[test]
fn a_load_tells_how_far_it_had_come_only_if_it_is_asked() {
    let folder = scratch();
    let model = synthetic(folder.path());
    assert!(json(&["load", text(&model), "--json"]).get("progress").is_none());
    for mode in ["dio", "none", "mmap"] {
        let flags = ["--json", "--sample-progress", "1", "--chunk", "64KiB", "--load-mode", mode];
        let mut arguments = vec!["load", text(&model)];
        arguments.extend(flags);
        let report = json(&arguments);
        let samples: Vec<(f64, u64)> = serde_json::from_value(report["progress"].clone()).unwrap();
        assert_eq!(samples[0], (0.0, 0));
        assert!(
            samples.windows(2).all(|it| it[0].0 <= it[1].0 && it[0].1 <= it[1].1),
            "{samples:?}"
        );
        let last = samples[samples.len() - 1];
        assert_eq!(Value::from(last.0), report["time"]["total_s"]);
        assert_eq!(Value::from(last.1), report["model"]["bytes"]);
    }
}
