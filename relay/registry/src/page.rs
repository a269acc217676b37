//! Pagination.

use rendez_proto::limits;

/// Returns the cursor of the next page: the last entry, if `page` is full. A full
/// page may be the last one; then an empty one follows.
pub(crate) fn next_cursor<T, I>(page: &[T], id: impl FnOnce(&T) -> I) -> Option<I> {
    let full = page.len() >= limits::LIST_PAGE_MAX as usize;
    page.last().filter(|_| full).map(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_pages_have_a_next_cursor() {
        let full: Vec<u32> = (0..limits::LIST_PAGE_MAX).collect();
        assert_eq!(next_cursor(&full, |id| *id), Some(limits::LIST_PAGE_MAX - 1));
        assert_eq!(next_cursor(&full[1..], |id| *id), None);
        assert_eq!(next_cursor(&[] as &[u32], |id| *id), None);
    }
}
