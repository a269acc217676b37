//! `rendez admin audit`: check or export the audit log.

use std::process::ExitCode;

use rendez_proto::audit::{AuditPage, AuditRow, Broken, Head, Intact, Verifier};

use crate::admin_access::{AdminOptions, StateDirectory};
use crate::exit::Exit;
use crate::output::{note, print, print_json_lines};

/// How often verification starts again after the relay removed old rows that it
/// had not read yet. A relay removes rows once an hour.
const ATTEMPTS_MAX: u32 = 5;

/// Check or export the audit log.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum AuditCommand {
    /// Check that no row was changed, removed or inserted, and print the end of
    /// the log, so that you can store it elsewhere. Exits with 65 on a finding
    Verify {
        #[command(flatten)]
        source: AdminOptions,
        /// An end that was printed before: the log must still contain it
        #[arg(long, value_name = "SEQ:HASH")]
        head: Option<Head>,
    },
    /// Print the rows as JSON, one object per line
    Export {
        #[command(flatten)]
        source: AdminOptions,
        /// Start after this row
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        after: u64,
    },
}

/// Runs the command.
pub(super) async fn run(command: AuditCommand) -> Result<ExitCode, Exit> {
    match command {
        AuditCommand::Verify { source, head } => {
            let admin = source.open(StateDirectory::Existing).await?;
            let intact = verify(async |after| admin.audit(after).await, head).await?;
            note(format_args!(
                "{} rows are intact; the first one is number {}",
                intact.rows, intact.first
            ));
            if intact.lost > 0 {
                note(format_args!(
                    "{} events were lost because they came too fast; the log records this",
                    intact.lost
                ));
            }
            print(intact.head)?;
        }
        AuditCommand::Export { source, after } => {
            let admin = source.open(StateDirectory::Existing).await?;
            pages(&async |after| admin.audit(after).await, after, print_json_lines).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Verifies the whole log. A relay may remove old rows meanwhile: if rows are
/// missing in the middle, and a moment later everything before them is missing as
/// well, the relay removed them, and a checkpoint vouches for it.
async fn verify(
    page: impl AsyncFn(u64) -> Result<AuditPage, Exit>,
    head: Option<Head>,
) -> Result<Intact, Exit> {
    for _ in 0..ATTEMPTS_MAX {
        let broken = match chain(&page, head).await? {
            Ok(intact) => return Ok(intact),
            Err(broken) => broken,
        };
        let Broken::Missing { from, .. } = broken else { return Err(Exit::data(broken)) };
        let first = page(0).await?.rows.first().map(|row| row.seq);
        if first.is_none_or(|first| first <= from) {
            return Err(Exit::data(broken));
        }
    }
    Err(Exit::unavailable("the relay removes old rows faster than they can be verified; try again"))
}

async fn chain(
    page: &impl AsyncFn(u64) -> Result<AuditPage, Exit>,
    head: Option<Head>,
) -> Result<Result<Intact, Broken>, Exit> {
    let mut verifier = Verifier::expecting(head);
    let mut broken = None;
    let checked = pages(page, 0, |rows| {
        let found = rows.iter().try_for_each(|row| verifier.check(row));
        broken = found.err();
        broken.as_ref().map_or(Ok(()), |broken| Err(Exit::data(broken)))
    });
    let checked = checked.await;
    match broken {
        Some(broken) => Ok(Err(broken)),
        None => checked.map(|()| verifier.finish()),
    }
}

/// Passes all rows after number `after` to `each`, page by page.
async fn pages(
    page: &impl AsyncFn(u64) -> Result<AuditPage, Exit>,
    after: u64,
    mut each: impl FnMut(&[AuditRow]) -> Result<(), Exit>,
) -> Result<(), Exit> {
    let mut next = Some(after);
    while let Some(after) = next {
        let AuditPage { rows, next: behind } = page(after).await?;
        each(&rows)?;
        // A page that does not advance would be requested for ever.
        next = behind.filter(|behind| *behind > after);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use rendez_proto::audit::{AuditEvent, AuditKind};

    use super::*;

    const PAGE: usize = 3;

    fn push(log: &mut Vec<AuditRow>, event: AuditEvent) {
        let end = log.last().map_or(Head::EMPTY, Head::from);
        log.push(event.chain(end));
    }

    fn log(rows: u64) -> Vec<AuditRow> {
        let mut log = Vec::new();
        (1..=rows).for_each(|at| push(&mut log, AuditEvent::new(AuditKind::Open, at)));
        log
    }

    /// Removes rows as a relay does, with a checkpoint that vouches for them.
    fn prune(log: &mut Vec<AuditRow>, through: u64) {
        let last = log.iter().find(|row| row.seq == through).unwrap();
        let (what, count) = (Some(last.hash.to_string()), Some(through));
        push(log, AuditEvent { what, count, ..AuditEvent::new(AuditKind::Checkpoint, 99) });
        log.retain(|row| row.seq > through);
    }

    fn page(log: &[AuditRow], after: u64) -> AuditPage {
        let rows: Vec<_> = log.iter().filter(|row| row.seq > after).take(PAGE).cloned().collect();
        let next = rows.last().filter(|_| rows.len() == PAGE).map(|row| row.seq);
        AuditPage { rows, next }
    }

    #[tokio::test]
    async fn rows_pruned_while_reading_are_accepted() {
        let (rows, pruned) = (RefCell::new(log(20)), Cell::new(false));
        let reading = async |after| {
            if after > 0 && !pruned.replace(true) {
                prune(&mut rows.borrow_mut(), 10);
            }
            Ok(page(&rows.borrow(), after))
        };
        let intact = verify(reading, None).await.unwrap();
        assert_eq!((intact.first, intact.rows, intact.head.seq), (11, 11, 21));
    }

    #[tokio::test]
    async fn missing_rows_are_reported() {
        let mut rows = log(20);
        rows.retain(|row| row.seq != 7);
        let broken = verify(async |after| Ok(page(&rows, after)), None).await.unwrap_err();
        assert!(broken.to_string().contains("rows 7 to 7 are missing"), "{broken}");
        // They are also reported behind rows that the relay removed.
        prune(&mut rows, 5);
        let broken = verify(async |after| Ok(page(&rows, after)), None).await.unwrap_err();
        assert!(broken.to_string().contains("rows 7 to 7 are missing"), "{broken}");
    }

    #[tokio::test]
    async fn constant_pruning_ends_the_verification() {
        let rows = RefCell::new(log(4));
        let reading = async |after| {
            let mut rows = rows.borrow_mut();
            if after > 0 {
                (0..10).for_each(|at| push(&mut rows, AuditEvent::new(AuditKind::Open, at)));
                let last = rows.last().map_or(0, |row| row.seq);
                prune(&mut rows, last - PAGE as u64);
            }
            Ok(page(&rows, after))
        };
        let error = verify(reading, None).await.unwrap_err();
        assert!(error.to_string().contains("try again"), "{error}");
    }
}
