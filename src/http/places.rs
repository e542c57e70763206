//! Who may be connected: a number of places for all, a share of them for each peer, and who gives way when they are taken.
//!
//! A connection is *in use* from a request's head to the end of its answer, and *waiting* before, between and after: for a
//! handshake, for a head, for a client that reads slowly. A newcomer takes the place of whoever has been waiting for longest,
//! so that clients which send nothing cost others nothing. Those in use are never displaced.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::peer::{Peer, Share};

/// The places of one listener.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    most_per_peer: usize,
    /// Held only to look up or change the table, never across an await.
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    count: usize,
    next: u64,
    peers: HashMap<Share, BTreeMap<u64, Arc<Occupant>>>,
}

/// Who has a place.
#[derive(Debug)]
struct Occupant {
    state: Mutex<Occupation>,
    displaced: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occupation {
    Waiting { since: Instant },
    InUse { uses: u32 },
    Displaced,
}

/// A place, freed when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    share: Share,
    id: u64,
    occupant: Arc<Occupant>,
}

/// Keeps a connection from being displaced for as long as it lives.
#[derive(Debug)]
pub(super) struct InUse(Arc<Place>);

/// Why there is no place now.
enum Full {
    /// Everything is in use, or all of the peer's share.
    All,
    Share,
}

impl Places {
    pub(super) fn new(most: usize, most_per_peer: usize) -> Arc<Self> {
        Arc::new(Self { most, most_per_peer, taken: Mutex::default(), freed: Notify::new() })
    }

    /// A place for `peer`, as soon as one is free or can be taken; none if its share is all in use.
    pub(super) async fn admit(self: &Arc<Self>, peer: &Peer) -> Option<Place> {
        loop {
            match self.try_admit(peer.share()) {
                Ok(place) => return Some(place),
                Err(Full::Share) => return None,
                Err(Full::All) => self.freed.notified().await,
            }
        }
    }

    fn try_admit(self: &Arc<Self>, share: Share) -> Result<Place, Full> {
        let mut taken = self.taken();
        if taken.peers.get(&share).is_some_and(|peer| peer.len() >= self.most_per_peer) {
            taken.displace([share]).ok_or(Full::Share)?;
        }
        if taken.count >= self.most {
            let peers = taken.by_appetite();
            taken.displace(peers).ok_or(Full::All)?;
        }
        let state = Mutex::new(Occupation::Waiting { since: Instant::now() });
        let occupant = Arc::new(Occupant { state, displaced: CancellationToken::new() });
        let id = taken.next;
        taken.next += 1;
        taken.count += 1;
        taken.peers.entry(share).or_default().insert(id, Arc::clone(&occupant));
        Ok(Place { places: Arc::clone(self), share, id, occupant })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// The peers, those with the most places first.
    fn by_appetite(&self) -> Vec<Share> {
        let mut peers: Vec<_> = self.peers.iter().map(|(share, places)| (places.len(), *share)).collect();
        peers.sort_unstable_by_key(|(places, _)| std::cmp::Reverse(*places));
        peers.into_iter().map(|(_, share)| share).collect()
    }

    /// Takes a place from the first of `peers` that keeps one waiting: the one that has waited for longest.
    fn displace(&mut self, peers: impl IntoIterator<Item = Share>) -> Option<()> {
        peers.into_iter().find_map(|share| {
            let waiting = self.peers.get(&share)?.iter().filter_map(|(id, occupant)| Some((occupant.waiting()?, *id)));
            let (_, longest) = waiting.min()?;
            let occupant = Arc::clone(self.peers.get(&share)?.get(&longest)?);
            occupant.displace().then(|| self.remove(share, longest))
        })
    }

    fn remove(&mut self, share: Share, id: u64) {
        let Some(places) = self.peers.get_mut(&share) else { return };
        if places.remove(&id).is_some() {
            self.count -= 1;
        }
        if places.is_empty() {
            self.peers.remove(&share);
        }
    }
}

impl Occupant {
    fn waiting(&self) -> Option<Instant> {
        match *self.state() {
            Occupation::Waiting { since } => Some(since),
            Occupation::InUse { .. } | Occupation::Displaced => None,
        }
    }

    /// Whether it was still waiting, and is displaced now.
    fn displace(&self) -> bool {
        let mut state = self.state();
        let waits = matches!(*state, Occupation::Waiting { .. });
        if waits {
            *state = Occupation::Displaced;
            self.displaced.cancel();
        }
        waits
    }

    fn state(&self) -> MutexGuard<'_, Occupation> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Marks the connection as in use until what is returned is dropped.
    pub(super) fn in_use(place: &Arc<Self>) -> InUse {
        let mut state = place.occupant.state();
        match &mut *state {
            Occupation::InUse { uses } => *uses += 1,
            Occupation::Waiting { .. } => *state = Occupation::InUse { uses: 1 },
            // Its end is on the way.
            Occupation::Displaced => {}
        }
        drop(state);
        InUse(Arc::clone(place))
    }

    /// What `work` comes to, unless the place is taken away first.
    pub(super) async fn unless_displaced<W: Future>(&self, work: W) -> Option<W::Output> {
        self.occupant.displaced.run_until_cancelled(work).await
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut state = self.0.occupant.state();
        match &mut *state {
            Occupation::InUse { uses } if *uses > 1 => *uses -= 1,
            Occupation::InUse { .. } => {
                *state = Occupation::Waiting { since: Instant::now() };
                drop(state);
                // Whoever found everything in use can displace this one now.
                self.0.places.freed.notify_one();
            }
            Occupation::Waiting { .. } | Occupation::Displaced => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().remove(self.share, self.id);
        self.places.freed.notify_one();
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    fn peer(last: u8) -> Peer {
        Peer::Inet(([10, 0, 0, last], 1).into())
    }

    async fn admit(places: &Arc<Places>, last: u8) -> Arc<Place> {
        Arc::new(places.admit(&peer(last)).await.unwrap())
    }

    fn displaced(place: &Place) -> bool {
        place.occupant.displaced.is_cancelled()
    }

    #[tokio::test]
    async fn a_newcomer_takes_the_place_of_the_longest_waiting_of_the_hungriest_peer() {
        let places = Places::new(3, 3);
        let alone = admit(&places, 1).await;
        let (first, second) = (admit(&places, 2).await, admit(&places, 2).await);
        let newcomer = admit(&places, 3).await;
        assert_eq!([&alone, &first, &second, &newcomer].map(|place| displaced(place)), [false, true, false, false]);
    }

    #[tokio::test]
    async fn what_is_in_use_is_never_displaced() {
        let places = Places::new(2, 2);
        let (busy, waiting) = (admit(&places, 1).await, admit(&places, 1).await);
        let in_use = Place::in_use(&busy);
        let newcomer = admit(&places, 2).await;
        let newcomer_in_use = Place::in_use(&newcomer);
        assert_eq!([&busy, &waiting].map(|place| displaced(place)), [false, true]);
        assert!(matches!(places.try_admit(peer(3).share()), Err(Full::All)));
        drop(in_use);
        admit(&places, 3).await;
        assert!(displaced(&busy) && !displaced(&newcomer));
        drop(newcomer_in_use);
    }

    #[tokio::test]
    async fn a_peer_beyond_its_share_displaces_its_own_or_is_refused() {
        let places = Places::new(10, 2);
        let other = admit(&places, 9).await;
        let (first, second) = (admit(&places, 1).await, admit(&places, 1).await);
        let third = admit(&places, 1).await;
        assert_eq!([&other, &first, &second].map(|place| displaced(place)), [false, true, false]);
        let _in_use = [Place::in_use(&second), Place::in_use(&third)];
        assert!(places.admit(&peer(1)).await.is_none());
    }

    #[tokio::test]
    async fn places_come_back_once_each() {
        let places = Places::new(1, 1);
        let first = admit(&places, 1).await;
        let second = admit(&places, 1).await;
        drop(first);
        assert_eq!(places.taken().count, 1, "the displaced one has given its place back already");
        drop(second);
        let taken = places.taken();
        assert_eq!((taken.count, taken.peers.len()), (0, 0));
    }
}
