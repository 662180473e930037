//! From text to syntax: nothing is resolved here, and nothing is refused but what is no PTX.

mod body;
mod lexer;
mod parser;
pub(crate) mod syntax;

pub(crate) use lexer::At;
pub(crate) use parser::parse;
