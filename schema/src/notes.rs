//! Labels and annotations: what people and programs note on an object.

use crate::shared::SmallMap;

/// Texts by name. An app's are part of its declaration, of what it is brought to and of what is shown of it, so copies share them.
pub type Notes = SmallMap<String, String>;
