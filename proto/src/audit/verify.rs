//! Checks a chain: nothing in it was changed, removed, inserted or moved.
//!
//! A chain alone does not prove its end, and does not reveal that all of it was
//! forged. A [`Head`] that was noted elsewhere does both: its row must be in the
//! chain, or be the last one that a checkpoint covers.

use super::row::{AuditHash, AuditKind, AuditRow, Head, hash};

/// Where and how a chain is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The row's hash does not match its contents.
    #[error("row {seq} was changed: its hash does not match its contents")]
    Edited {
        /// The row.
        seq: u64,
    },
    /// Numbers are missing.
    #[error("rows {from} to {to} are missing")]
    Missing {
        /// The first that is missing.
        from: u64,
        /// The last that is missing.
        to: u64,
    },
    /// A repeated or smaller number.
    #[error("row {seq} comes after row {after}")]
    Order {
        /// The row.
        seq: u64,
        /// The one before it.
        after: u64,
    },
    /// Its hash matches its contents, but not the row before it.
    #[error("row {seq} does not continue row {}, one of the two was replaced", seq - 1)]
    Unchained {
        /// The row.
        seq: u64,
    },
    /// Rows before the first one are missing, without a checkpoint.
    #[error("rows before row {first} are missing, and no checkpoint covers their removal")]
    Beginning {
        /// The first row that is there.
        first: u64,
    },
    /// The end was cut off.
    #[error(
        "row {head} is missing although it was noted as the last one: the log ends with row {last}"
    )]
    CutOff {
        /// The row that was noted.
        head: u64,
        /// The last that is there.
        last: u64,
    },
    /// The noted row has another hash.
    #[error("row {seq} has another hash than the noted one: the log was rewritten")]
    Replaced {
        /// The row.
        seq: u64,
    },
    /// The noted row was removed as too old.
    #[error("the noted row {head} was removed as too old: note a newer head")]
    HeadTooOld {
        /// The row that was noted.
        head: u64,
    },
}

/// The result for a whole chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intact {
    /// How many rows there are.
    pub rows: u64,
    /// The first row's number, and thereby how many were removed before.
    pub first: u64,
    /// Its end.
    pub head: Head,
    /// Events that were lost, all gaps together.
    pub lost: u64,
}

/// Checks a chain, row by row, in the order of their numbers.
#[derive(Debug, Default)]
pub struct Verifier {
    known: Option<Head>,
    first: Option<AuditRow>,
    last: Option<Head>,
    /// Whether a checkpoint covers the rows before the first one.
    vouched: bool,
    rows: u64,
    lost: u64,
}

impl Verifier {
    /// Also requires that this head, noted before, is in the chain.
    pub fn expecting(known: Option<Head>) -> Self {
        Self { known, ..Self::default() }
    }

    /// Checks the next row.
    ///
    /// # Errors
    /// [`Broken`]; rows after it are not checked.
    pub fn check(&mut self, row: &AuditRow) -> Result<(), Broken> {
        let seq = row.seq;
        if hash(&row.event, seq, row.previous) != row.hash {
            return Err(Broken::Edited { seq });
        }
        match self.last {
            Some(last) if seq <= last.seq => return Err(Broken::Order { seq, after: last.seq }),
            Some(last) if seq > last.seq + 1 => {
                return Err(Broken::Missing { from: last.seq + 1, to: seq - 1 });
            }
            Some(last) if row.previous != last.hash => return Err(Broken::Unchained { seq }),
            Some(_) => {}
            None => {
                self.vouched = seq == 1 && row.previous == AuditHash::NONE;
                self.first = Some(row.clone());
            }
        }
        if self.known.is_some_and(|known| known.seq == seq && known.hash != row.hash) {
            return Err(Broken::Replaced { seq });
        }
        match row.event.kind {
            AuditKind::Checkpoint => {
                self.vouched |= self.first.as_ref().is_some_and(|first| {
                    let removed = row.event.what.as_deref().map(str::parse);
                    row.event.count == first.seq.checked_sub(1)
                        && removed == Some(Ok(first.previous))
                });
            }
            AuditKind::Gap => self.lost = self.lost.saturating_add(row.event.count.unwrap_or(0)),
            _ => {}
        }
        self.rows += 1;
        self.last = Some(row.into());
        Ok(())
    }

    /// Checks the end, after the last row.
    ///
    /// # Errors
    /// [`Broken`]: the beginning or the end is missing.
    pub fn finish(self) -> Result<Intact, Broken> {
        let head = self.last.unwrap_or(Head::EMPTY);
        let first = self.first.as_ref().map_or(0, |row| row.seq);
        if first > 0 && !self.vouched {
            return Err(Broken::Beginning { first });
        }
        match self.known {
            Some(known) if known.seq > head.seq => {
                return Err(Broken::CutOff { head: known.seq, last: head.seq });
            }
            Some(known) if known.seq < first => {
                let removed = self.first.as_ref().map(|row| row.previous);
                if known.seq + 1 != first {
                    return Err(Broken::HeadTooOld { head: known.seq });
                }
                // the last row that was removed: the first one still names it
                if removed != Some(known.hash) {
                    return Err(Broken::Replaced { seq: known.seq });
                }
            }
            _ => {}
        }
        Ok(Intact { rows: self.rows, first, head, lost: self.lost })
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::AuditEvent;
    use super::super::row::tests::event;
    use super::*;

    fn chain(n: u64) -> Vec<AuditRow> {
        let mut head = Head::EMPTY;
        (1..=n)
            .map(|n| {
                let row = event(n).chain(head);
                head = (&row).into();
                row
            })
            .collect()
    }

    fn verify(rows: &[AuditRow], known: Option<Head>) -> Result<Intact, Broken> {
        let mut verifier = Verifier::expecting(known);
        rows.iter().try_for_each(|row| verifier.check(row))?;
        verifier.finish()
    }

    #[test]
    fn complete_and_empty_chains_verify() {
        let rows = chain(9);
        let intact = verify(&rows, Some((&rows[4]).into())).unwrap();
        assert_eq!((intact.rows, intact.first, intact.head), (9, 1, (&rows[8]).into()));
        assert_eq!(verify(&[], None).unwrap().head, Head::EMPTY);
    }

    #[test]
    fn changed_field_breaks_the_chain() {
        let rows = chain(3);
        let change: [fn(&mut AuditEvent); 9] = [
            |event| event.at_unix_secs += 1,
            |event| event.kind = AuditKind::Open,
            |event| event.actor = None,
            |event| event.environment = Some("prod".parse().unwrap()),
            |event| event.registration = None,
            |event| event.stream = event.what.take(),
            |event| event.what = Some(String::new()),
            |event| event.sent_bytes = event.received_bytes.take(),
            |event| event.count = Some(0),
        ];
        for change in change {
            let mut rows = rows.clone();
            change(&mut rows[1].event);
            assert_eq!(verify(&rows, None), Err(Broken::Edited { seq: 2 }));
            // with a hash that fits, the next row does not
            let forged = rows[1].event.clone().chain((&rows[0]).into());
            rows[1] = forged;
            assert_eq!(verify(&rows, None), Err(Broken::Unchained { seq: 3 }));
        }
    }

    #[test]
    fn missing_moved_and_truncated_rows_are_named() {
        let rows = chain(6);
        let without = |seqs: &[u64]| {
            let rows = rows.iter().filter(|row| !seqs.contains(&row.seq));
            rows.cloned().collect::<Vec<_>>()
        };
        let head = Some(Head::from(&rows[5]));
        assert_eq!(verify(&without(&[3, 4]), None), Err(Broken::Missing { from: 3, to: 4 }));
        assert_eq!(verify(&without(&[1]), None), Err(Broken::Beginning { first: 2 }));
        assert!(verify(&without(&[5, 6]), None).is_ok(), "not detectable without a head");
        assert_eq!(verify(&without(&[5, 6]), head), Err(Broken::CutOff { head: 6, last: 4 }));

        let mut swapped = rows.clone();
        swapped.swap(2, 3);
        assert_eq!(verify(&swapped, None), Err(Broken::Missing { from: 3, to: 3 }));
        let mut twice = rows.clone();
        twice.insert(2, rows[1].clone());
        assert_eq!(verify(&twice, None), Err(Broken::Order { seq: 2, after: 2 }));
        // contents that changed places keep their hashes and lose their numbers
        let mut exchanged = rows.clone();
        let (two, three) = (rows[1].event.clone(), rows[2].event.clone());
        (exchanged[1].event, exchanged[2].event) = (three, two);
        assert_eq!(verify(&exchanged, None), Err(Broken::Edited { seq: 2 }));
        // a chain made anew
        let anew: Vec<_> = {
            let mut head = Head::EMPTY;
            let make = |n: u64| {
                let row = event(n + 10).chain(head);
                head = (&row).into();
                row
            };
            (1..=6).map(make).collect()
        };
        assert!(verify(&anew, None).is_ok());
        assert_eq!(verify(&anew, head), Err(Broken::Replaced { seq: 6 }));
    }

    #[test]
    fn checkpoint_covers_removed_rows() {
        let mut rows = chain(6);
        let checkpoint = |through: &AuditRow, after: &AuditRow| {
            AuditEvent {
                what: Some(through.hash.to_string()),
                count: Some(through.seq),
                ..AuditEvent::new(AuditKind::Checkpoint, 500)
            }
            .chain(after.into())
        };
        rows.push(checkpoint(&rows[3], &rows[5]));
        assert!(verify(&rows, None).is_ok(), "not removed yet");
        let intact = verify(&rows[4..], None).unwrap();
        assert_eq!((intact.first, intact.rows), (5, 3));
        // more was removed than that, or less
        assert_eq!(verify(&rows[5..], None), Err(Broken::Beginning { first: 6 }));
        assert_eq!(verify(&rows[3..], None), Err(Broken::Beginning { first: 4 }));
        assert_eq!(
            verify(&rows[4..], Some((&rows[1]).into())),
            Err(Broken::HeadTooOld { head: 2 })
        );
        // the last one that was removed is named by the first that is there
        assert!(verify(&rows[4..], Some((&rows[3]).into())).is_ok());
        let other = Head { seq: 4, hash: rows[2].hash };
        assert_eq!(verify(&rows[4..], Some(other)), Err(Broken::Replaced { seq: 4 }));
        // everything but the checkpoint itself
        let all = checkpoint(&rows[6], &rows[6]);
        assert!(verify(&[all], None).is_ok());
    }

    #[test]
    fn gaps_are_summed() {
        let gap = |n, head| {
            AuditEvent { count: Some(n), ..AuditEvent::new(AuditKind::Gap, 1) }.chain(head)
        };
        let one = gap(3, Head::EMPTY);
        let two = gap(4, (&one).into());
        assert_eq!(verify(&[one, two], None).unwrap().lost, 7);
    }
}
