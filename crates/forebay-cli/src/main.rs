//! The `forebay` command.

#![forbid(unsafe_code)]

mod args;
mod ceiling;
mod commands;
mod failure;
mod interrupt;
mod output;
mod size;
mod timeline;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse_from(args::with_long_load_mode(std::env::args_os()));
    let outcome = run(&cli);
    // Nobody loads after this.
    forebay::release_staging();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::notice(failure.to_string().trim_end());
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Inspect(arguments) => commands::inspect::run(arguments),
        Command::Plan(arguments) => commands::plan::run(arguments),
        Command::Load(arguments) => commands::load::run(arguments),
        Command::Stream(arguments) => commands::stream::run(arguments),
        Command::Bench(arguments) => commands::bench::run(arguments),
        Command::Doctor(arguments) => commands::doctor::run(arguments),
        Command::Verify(arguments) => commands::verify::run(arguments),
        Command::Synth(arguments) => commands::synth::run(arguments),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command, "forebay", &mut script);
            output::bytes(&script)
        }
        Command::Man => {
            let page =
                man_page().map_err(|error| Failure::caused("can't make the man page", &error))?;
            output::bytes(&page)
        }
    }
}

/// One page: the command, then every subcommand.
fn man_page() -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let mut command = Cli::command();
    command.build();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for subcommand in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        let man = clap_mangen::Man::new(subcommand.clone());
        page.extend(format!(".SH \"FOREBAY {}\"\n", subcommand.get_name()).to_uppercase().bytes());
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
    }
    Ok(page)
}
