//! Output to the terminal.
//!
//! Results go to standard output, through [`print()`] and [`print_lines`]: if the
//! pipe is closed (`rendez env ls | head -1`), the command ends without a message
//! and with the code of SIGPIPE, as other programs do. Notes go to standard error,
//! through [`note`], which ignores failures. `println!` and `eprintln!` would panic
//! in both cases; a lint forbids them.

use std::fmt::Display;
use std::io::{BufWriter, ErrorKind, Write, stderr, stdout};

use serde::Serialize;

use crate::exit::Exit;

/// Prints a text and a line break.
pub(crate) fn print(text: impl Display) -> Result<(), Exit> {
    print_lines([text])
}

/// Prints lines.
pub(crate) fn print_lines<T: Display>(lines: impl IntoIterator<Item = T>) -> Result<(), Exit> {
    let mut out = BufWriter::new(stdout().lock());
    let mut lines = lines.into_iter();
    let written = lines.try_for_each(|line| writeln!(out, "{line}"));
    written.and_then(|()| out.flush()).map_err(|error| write_error(&error))
}

/// Prints a value as one line of JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Exit> {
    print(serde_json::to_string(value).map_err(Exit::software)?)
}

/// Prints values as JSON, one per line.
pub(crate) fn print_json_lines<T: Serialize>(values: &[T]) -> Result<(), Exit> {
    let texts: Result<Vec<_>, _> = values.iter().map(serde_json::to_string).collect();
    print_lines(texts.map_err(Exit::software)?)
}

/// Prints a note on standard error.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(stderr(), "{text}");
}

/// The exit for output that could not be written.
pub(crate) fn write_error(error: &std::io::Error) -> Exit {
    match error.kind() {
        ErrorKind::BrokenPipe => Exit::broken_pipe(),
        _ => Exit::io(format!("cannot write the output: {error}")),
    }
}
