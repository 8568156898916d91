//! Random choices that can be replayed and shrunk. A *tape* is a list of 64-bit words, one for each step of a history.
//! A step makes all its choices from its own word. So a tape stays a valid history when some of its words are removed.

/// Most steps of a history.
pub(crate) const MAX_STEPS: usize = 200;

/// The choices of one step.
pub(crate) struct Dice(u64);

impl Dice {
    /// Makes dice. The same word always gives the same choices.
    pub(crate) fn new(word: u64) -> Self {
        Self(word)
    }

    /// The next random word (splitmix64).
    pub(crate) fn next_word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `n` - 1; zero if `n` is zero.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next_word() % n.max(1)
    }

    /// An index into a list of this length.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or_default()
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Chooses one of these values; `None` if the list is empty.
    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.index(from.len())).cloned()
    }

    /// Chooses one of these values. The list must not be empty.
    pub(crate) fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

/// The tape of a seed: from `MAX_STEPS / 4` to `MAX_STEPS` words.
pub(crate) fn generate_tape(seed: u64) -> Vec<u64> {
    let mut dice = Dice::new(seed);
    let steps = MAX_STEPS / 4 + dice.index(MAX_STEPS - MAX_STEPS / 4);
    (0..steps).map(|_| dice.next_word()).collect()
}

/// The shortest tape that still fails. The function cuts pieces out of the tape, first half of it, then smaller and
/// smaller pieces. A piece stays out if the rest still fails.
pub(crate) fn shrink(mut tape: Vec<u64>, fails: impl Fn(&[u64]) -> bool) -> Vec<u64> {
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
        // A cut of one word can make another cut possible, so repeat the last round while it cuts anything.
        if !cut || piece > 1 {
            piece /= 2;
        }
    }
    tape
}
