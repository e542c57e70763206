//! Pages and chunks: the units in which memory is looked at and kept.

/// The size of a page, in bytes. An image says which it was made with, so that another host refuses it.
pub(super) const PAGE: usize = 4096;

/// Pages of a chunk: few enough that one written page does not drag much along when its chunk is compared, and many enough that
/// the entries of an image are one in a thousand of its data.
pub(super) const CHUNK_PAGES: usize = 16;

/// The size of a chunk, in bytes.
pub(super) const CHUNK: usize = PAGE * CHUNK_PAGES;

/// Some pages of one chunk, the lowest bit for the first.
pub(super) type PageMask = u16;

/// A chunk in which pages were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Touched {
    /// Its number, counted from the beginning of the guest's memory.
    pub chunk: u32,
    /// Which of its pages.
    pub pages: PageMask,
}

/// Adds the pages from `first` to before `end`, which lie behind all that were added before.
pub(super) fn touch(touched: &mut Vec<Touched>, first: u64, end: u64) {
    let mut page = first;
    while page < end {
        let chunk = page / CHUNK_PAGES as u64;
        let chunk_end = (chunk + 1) * CHUNK_PAGES as u64;
        let upto = end.min(chunk_end);
        let within = |page: u64| page - chunk * CHUNK_PAGES as u64;
        let pages = mask(within(page), within(upto));
        let chunk = u32::try_from(chunk).expect("a guest has less than 256 TiB");
        match touched.last_mut() {
            Some(last) if last.chunk == chunk => last.pages |= pages,
            _ => touched.push(Touched { chunk, pages }),
        }
        page = upto;
    }
}

fn mask(first: u64, end: u64) -> PageMask {
    let below = |bit: u64| if bit >= CHUNK_PAGES as u64 { PageMask::MAX } else { (1 << bit) - 1 };
    below(end) & !below(first)
}

/// The ranges of bytes within a chunk that its pages take up, neighbours joined.
pub(super) fn ranges(pages: PageMask) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut rest = pages;
    let mut at = 0;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let skipped = rest.trailing_zeros() as usize;
        rest >>= skipped;
        let count = rest.trailing_ones() as usize;
        // All sixteen at once would be a shift by the whole width.
        rest = rest.checked_shr(count as u32).unwrap_or(0);
        let first = at + skipped;
        at = first + count;
        Some(first * PAGE..at * PAGE)
    })
}

/// Those among `pages` of a chunk's content that are not all zero.
pub(super) fn not_zero(content: &[u8; CHUNK], pages: PageMask) -> PageMask {
    let page_of = |at: usize| &content[at * PAGE..(at + 1) * PAGE];
    let is_zero = |page: &[u8]| page.chunks_exact(64).all(|line| line.iter().fold(0, |sum, byte| sum | byte) == 0);
    (0..CHUNK_PAGES).filter(|at| pages & 1 << at != 0 && !is_zero(page_of(*at))).fold(0, |mask, at| mask | 1 << at)
}

/// The bytes that so many pages of one chunk take.
pub(super) fn bytes(pages: PageMask) -> usize {
    pages.count_ones() as usize * PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_over_several_chunks_touches_each_in_part() {
        let mut touched = Vec::new();
        touch(&mut touched, 3, 5);
        touch(&mut touched, 15, 33);
        let expected = [(0, 0b1000_0000_0001_1000), (1, PageMask::MAX), (2, 1)];
        assert_eq!(touched, expected.map(|(chunk, pages)| Touched { chunk, pages }));
    }

    #[test]
    fn neighbouring_pages_are_one_range() {
        let pages = |mask| ranges(mask).map(|range| (range.start / PAGE, range.end / PAGE)).collect::<Vec<_>>();
        assert_eq!(pages(0), []);
        assert_eq!(pages(PageMask::MAX), [(0, 16)]);
        assert_eq!(pages(0b1000_0000_0110_0001), [(0, 1), (5, 7), (15, 16)]);
    }

    #[test]
    fn only_asked_for_pages_with_something_in_them_count() {
        let mut content = [0; CHUNK];
        content[PAGE * 2 + 17] = 1;
        content[PAGE * 3] = 1;
        assert_eq!(not_zero(&content, 0b0110), 0b0100);
    }
}
