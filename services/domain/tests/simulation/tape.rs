//! Chance that can be replayed and shrunk. A history is a tape of words. Each step draws all its choices from a word of
//! its own, so that a tape without some of its words is a valid history as well.

/// Most steps of a history.
pub(crate) const LONGEST: usize = 200;

/// The choices of one step.
pub(crate) struct Dice(u64);

impl Dice {
    /// Dice that always fall alike for the same word.
    pub(crate) fn new(word: u64) -> Self {
        Self(word)
    }

    /// The next word (splitmix64).
    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `n` - 1; zero if `n` is zero.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.word() % n.max(1)
    }

    /// An index into a list of this length.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or_default()
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of these values; `None` if there are none.
    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.index(from.len())).cloned()
    }

    /// One of these values.
    pub(crate) fn of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

/// The tape of a seed.
pub(crate) fn tape(seed: u64) -> Vec<u64> {
    let mut dice = Dice::new(seed);
    let steps = LONGEST / 4 + dice.index(LONGEST - LONGEST / 4);
    (0..steps).map(|_| dice.word()).collect()
}

/// The shortest tape that still fails: smaller and smaller pieces are cut out for as long as the rest fails.
pub(crate) fn shortest(mut tape: Vec<u64>, fails: impl Fn(&[u64]) -> bool) -> Vec<u64> {
    let mut piece = tape.len() / 2;
    while piece > 0 {
        let (mut from, mut cut) = (0, false);
        while from < tape.len() {
            let mut shorter = tape.clone();
            shorter.drain(from..(from + piece).min(tape.len()));
            if fails(&shorter) {
                tape = shorter;
                cut = true;
            } else {
                from += piece;
            }
        }
        // The smallest cuts may make further ones possible.
        if !cut || piece > 1 {
            piece /= 2;
        }
    }
    tape
}
