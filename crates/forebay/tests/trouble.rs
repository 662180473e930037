//! What the machine refuses, and files that change under the load.

mod support;

use forebay::{Access, EngineChoice, Errno, Error, FailureKind, FallbackReport, Loader, Model};
use forebay_tests::{Answer, Rule, Script};
use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use support::{TestModel, engines};

fn small_reads(model: &TestModel, engine: EngineChoice) -> Loader {
    model.loader("dio").engine(engine).staging_bytes(512 << 10)
}

fn assert_lands_right(model: &TestModel, loader: Loader) -> Vec<FallbackReport> {
    let loaded = loader.load().unwrap();
    loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
    loaded.report().files[0].fallbacks.clone()
}

fn refusal(errno: Errno, access: Access) -> Rule {
    Rule::new(Answer::Errno(errno)).only(move |op| op.access == access)
}

/// The ways of an engine to read, best first.
fn rungs(engine: EngineChoice) -> &'static [&'static str] {
    match engine {
        EngineChoice::TokioUring => &["direct", "buffered"],
        _ => &["direct", "dontcache", "buffered"],
    }
}

#[test]
fn a_refused_direct_read_steps_down_once_and_loses_no_byte() {
    let model = TestModel::new(4 << 20);
    for engine in engines() {
        for errno in [Errno::EINVAL, Errno::EFAULT, Errno::EOPNOTSUPP] {
            let script = Script::new(refusal(errno, Access::Direct).after(3));
            let loader = small_reads(&model, engine).fault(Box::new(script));
            let steps = assert_lands_right(&model, loader);
            let first = &steps[0];
            assert_eq!((first.from, first.to, first.at), ("direct", rungs(engine)[1], "read"));
            assert_eq!(first.errno, format!("{errno:?}"));
            assert!(first.offset.is_some());
            assert_eq!(steps.iter().filter(|step| step.from == "direct").count(), 1);
        }
    }
}

/// Design decision 1: a known loader refills from the start of the buffer here, and goes on with
/// corrupt weights.
#[test]
fn a_short_direct_read_followed_by_efault_loses_no_byte() {
    let model = TestModel::new(4 << 20);
    for engine in engines() {
        for short_bytes in [4096, 8192, 5000, 1] {
            let short = Rule::new(Answer::Short(short_bytes)).after(2).times(1);
            let continued = |op: &forebay_io::Op| op.slot_offset > 0;
            let fault = Rule::new(Answer::Errno(Errno::EFAULT)).only(continued).times(1);
            let script = Script::new(short).and(fault);
            assert_lands_right(&model, small_reads(&model, engine).fault(Box::new(script)));
        }
    }
}

#[test]
fn every_rung_refused_but_the_last_still_loads() {
    let model = TestModel::new(4 << 20);
    for engine in engines() {
        let script = Script::new(refusal(Errno::EINVAL, Access::Direct))
            .and(refusal(Errno::EOPNOTSUPP, Access::DontCache));
        let loader = small_reads(&model, engine).fault(Box::new(script));
        let steps = assert_lands_right(&model, loader);
        let taken: Vec<_> = steps.iter().map(|step| (step.from, step.to)).collect();
        let rungs = rungs(engine).windows(2).map(|pair| (pair[0], pair[1]));
        assert_eq!(taken, rungs.collect::<Vec<_>>());
    }
}

#[test]
fn without_fallback_the_first_refusal_is_the_error() {
    let model = TestModel::new(1 << 20);
    for engine in engines() {
        let script = Script::new(refusal(Errno::EINVAL, Access::Direct));
        let loader = small_reads(&model, engine).no_fallback().fault(Box::new(script));
        let error = loader.load().unwrap_err();
        assert!(error.to_string().contains("falling back is forbidden"), "{error}");
        assert!(error.remedy().unwrap().contains("--no-fallback"));
    }
}

#[test]
fn a_failed_read_names_file_offset_and_tensor() {
    let model = TestModel::new(4 << 20);
    for engine in engines() {
        let script = Script::new(Rule::new(Answer::Errno(Errno::EIO)).after(5).times(1));
        let error = small_reads(&model, engine).fault(Box::new(script)).load().unwrap_err();
        let Error::Read { context, failure } = &error else { panic!("{error}") };
        assert_eq!(failure.kind, FailureKind::Errno(Errno::EIO));
        assert_eq!(context.path.as_deref(), Some(model.path.as_path()));
        let tensor = context.tensor.as_deref().unwrap();
        assert!(model.tensors.contains_key(tensor) && error.to_string().contains(tensor));
        assert!(error.to_string().contains("offset"), "{error}");
    }
}

/// Something happens to the file when the fourth read has completed.
fn meanwhile(model: &TestModel, happens: impl Fn(&std::fs::File) + Send + 'static) -> Script {
    let file = OpenOptions::new().write(true).open(&model.path).unwrap();
    let happens = Answer::Meanwhile(Box::new(move || happens(&file)));
    Script::new(Rule::new(happens).after(3).times(1))
}

#[test]
fn a_file_cut_short_during_the_load_is_an_error() {
    for mode in ["dio", "none", "mmap", "auto"] {
        for engine in [EngineChoice::Auto, EngineChoice::Threads] {
            let model = TestModel::new(4 << 20);
            let script = meanwhile(&model, |file| file.set_len(1 << 20).unwrap());
            let loader = model.loader(mode).engine(engine).staging_bytes(256 << 10);
            let error = loader.fault(Box::new(script)).load().unwrap_err();
            assert!(error.remedy().is_some(), "{mode}: {error}");
            assert!(error.to_string().contains("model.safetensors"), "{mode}: {error}");
        }
    }
}

#[test]
fn a_file_written_to_during_the_load_is_an_error_and_no_mixture() {
    let model = TestModel::new(4 << 20);
    let script = meanwhile(&model, |mut file| {
        file.seek(SeekFrom::Start(1 << 20)).unwrap();
        file.write_all(b"another model's weights").unwrap();
    });
    // Clocks of file times are coarse: the write must not fall into the tick of the creation.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let loader = model.loader("dio").staging_bytes(256 << 10);
    let error = loader.fault(Box::new(script)).load().unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

/// Replacing a file is how it is changed safely: whoever has opened it goes on with what they opened.
#[test]
fn an_open_model_is_loaded_from_its_own_files() {
    let (model, other) = (TestModel::new(1 << 20), TestModel::new(2 << 20));
    let opened = Model::open(&model.path).unwrap();
    std::fs::copy(&other.path, model.path.with_extension("new")).unwrap();
    std::fs::rename(model.path.with_extension("new"), &model.path).unwrap();
    for mode in ["dio", "cpu=mmap", "none"] {
        let loaded = Loader::of(&opened).load_mode(mode.parse().unwrap()).load().unwrap();
        loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
        assert_eq!(loaded.report().time.open_s.to_bits(), 0, "it opened nothing");
    }
    let loaded = Loader::new(&model.path).load().unwrap();
    loaded.tensors().for_each(|tensor| other.assert_right(&tensor));

    let opened = Model::open(&other.path).unwrap();
    let mut file = OpenOptions::new().write(true).open(&other.path).unwrap();
    file.seek(SeekFrom::End(-1)).unwrap();
    file.write_all(b"!").unwrap();
    let changed = Loader::of(&opened).load();
    assert!(matches!(changed, Err(Error::Changed { .. })));
}
