//! Who gets how much of too little room.

/// The least that anybody is given: less holds nothing worth reading.
const LEAST: usize = 250;

/// Divides `room` fairly: whoever wants less than an equal share gets what it wants, and leaves the rest to the others. Where
/// equal shares would be of no use to anybody, the first ones get all.
pub(super) fn shares(room: usize, wanted: &[usize]) -> Vec<usize> {
    let mut shares = vec![0; wanted.len()];
    let needs = wanted.iter().scan(0, |sum: &mut usize, want| {
        *sum += (*want).min(LEAST);
        Some(*sum)
    });
    let takers = needs.take_while(|sum| *sum <= room).count();
    let mut order: Vec<usize> = (0..takers).collect();
    order.sort_by_key(|index| wanted[*index]);
    let (mut left, mut waiting) = (room, takers);
    for index in order {
        shares[index] = wanted[index].min(left / waiting);
        left -= shares[index];
        waiting -= 1;
    }
    shares
}

/// A line of names within `room` bytes, which says how many names are missing.
pub(super) fn list(what: &str, names: &[String], room: usize) -> String {
    let whole = format!("- **{what}** ({}): {}\n", names.len(), names.join(", "));
    if whole.len() <= room {
        return whole;
    }
    let mut line = format!("- **{what}** ({}): ", names.len());
    let room = room.saturating_sub(" and 1000000 more\n".len());
    let mut shown = 0;
    for name in names {
        if line.len() + name.len() + 2 > room {
            break;
        }
        line.push_str(name);
        line.push_str(", ");
        shown += 1;
    }
    format!("{} and {} more\n", line.trim_end_matches([',', ' ']), names.len() - shown)
}
