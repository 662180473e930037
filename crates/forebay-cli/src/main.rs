//! The `forebay` command.

mod args;
mod ceiling;
mod commands;
mod failure;
mod output;
mod size;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse_from(args::with_long_load_mode(std::env::args_os()));
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprint!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Inspect(arguments) => commands::inspect::run(arguments),
        Command::Plan(arguments) => commands::plan::run(arguments),
        Command::Load(arguments) => commands::load::run(arguments),
        Command::Bench(arguments) => commands::bench::run(arguments),
        Command::Doctor(arguments) => commands::doctor::run(arguments),
        Command::Verify(arguments) => commands::verify::run(arguments),
        Command::Synth(arguments) => commands::synth::run(arguments),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(*shell, &mut command, "forebay", &mut std::io::stdout());
            Ok(())
        }
        Command::Man => {
            let page = clap_mangen::Man::new(Cli::command());
            page.render(&mut std::io::stdout()).map_err(Failure::output)
        }
    }
}
