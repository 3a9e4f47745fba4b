//! The kernel's generations of pages (Documentation/admin-guide/mm/multigen_lru.rst): the list, and the commands.

/// The generations of a memory cgroup on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lru {
    /// The cgroup's number.
    pub(super) memcg: u64,
    /// Where it is; remembers it better than its number, which may be another's later.
    pub(super) path: String,
    pub(super) node: u64,
    /// From the oldest to the youngest.
    pub(super) generations: Vec<Generation>,
}

/// Pages of one age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) anonymous: u64,
    pub(super) file: u64,
}

/// Reads the list. Lines of another form are left out.
pub(super) fn parse(text: &str) -> Vec<Lru> {
    let mut list: Vec<Lru> = Vec::new();
    let mut memcg = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["memcg", id, path @ ..] => {
                memcg = id.parse().ok().map(|id: u64| (id, path.first().copied().unwrap_or("/").to_owned()));
            }
            ["node", node] => {
                if let (Some((memcg, path)), Ok(node)) = (memcg.clone(), node.parse()) {
                    list.push(Lru { memcg, path, node, generations: Vec::new() });
                }
            }
            [number, _age, anonymous, file] => {
                // A minus is before a number that is being changed.
                let pages = |word: &str| word.trim_start_matches('-').parse().ok();
                let parsed = number.parse().ok().zip(pages(anonymous)).zip(pages(file));
                if let (Some(((number, anonymous), file)), Some(lru)) = (parsed, list.last_mut()) {
                    lru.generations.push(Generation { number, anonymous, file });
                }
            }
            _ => {}
        }
    }
    list
}

impl Lru {
    /// The command that makes a new generation, and finds out which pages were used since the last.
    pub(super) fn age(&self, swap: bool) -> Option<String> {
        let youngest = self.generations.last()?.number;
        Some(format!("+ {} {} {youngest} {}", self.memcg, self.node, u8::from(swap)))
    }

    /// The oldest generation, if its pages have aged: the two youngest are in use.
    pub(super) fn oldest(&self) -> Option<Generation> {
        let (oldest, youngest) = (self.generations.first()?, self.generations.last()?);
        (oldest.number.saturating_add(2) <= youngest.number).then_some(*oldest)
    }

    /// The command that reclaims some pages of a generation.
    pub(super) fn evict(&self, generation: u64, swappiness: u8, pages: u64) -> String {
        format!("- {} {} {generation} {swappiness} {pages}", self.memcg, self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "memcg     1 /\n node     0\n          4     90500      10       200\n          5      1000      -3        40\n\
                        memcg    33 /nakai/c1\n node     0\n          0      5000       0        64\n          1      3000       0         1\n          2       100       7         9\n node 1\n";

    #[test]
    fn the_list_is_read() {
        let list = parse(LIST);
        assert_eq!(list.len(), 3);
        assert_eq!((list[0].memcg, &*list[0].path, list[0].node), (1, "/", 0));
        assert_eq!(list[0].generations[1], Generation { number: 5, anonymous: 3, file: 40 });
        assert_eq!((list[1].memcg, &*list[1].path), (33, "/nakai/c1"));
        assert_eq!(list[1].generations.len(), 3);
        assert!(list[2].generations.is_empty());
        assert_eq!(parse("nonsense\n 1 2 3 4\n node 0\nmemcg x /\n node 0\n"), []);
    }

    #[test]
    fn commands_name_the_generations() {
        let list = parse(LIST);
        assert_eq!(list[1].age(false).as_deref(), Some("+ 33 0 2 0"));
        assert_eq!(list[2].age(true), None);
        assert_eq!(list[0].oldest(), None, "the two youngest are in use");
        assert_eq!(list[1].oldest().map(|oldest| oldest.number), Some(0));
        assert_eq!(list[1].evict(0, 50, 512), "- 33 0 0 50 512");
    }
}
