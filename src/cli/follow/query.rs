//! What stands behind the `?` of a request.

use setpoint_schema::name::AppKey;

/// Items that a page holds at most: as many as the API gives.
const PAGE: usize = 1000;

/// Parameters that choose among the objects of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(String);

impl Query {
    /// What belongs to an app.
    #[must_use]
    pub fn of_app(app: &AppKey) -> Self {
        Self::default().with("app", &app.to_string())
    }

    /// The same with one more parameter.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.push_str(&format!("&{name}={}", encoded(value)));
        self
    }

    /// The same with a parameter where there is a value for it.
    #[must_use]
    pub fn with_some(self, name: &str, value: Option<impl AsRef<str>>) -> Self {
        match value {
            Some(value) => self.with(name, value.as_ref()),
            None => self,
        }
    }

    /// The path of one page: the first, or that after `cursor`.
    #[must_use]
    pub fn page(&self, path: &str, cursor: Option<&str>) -> String {
        let cursor = cursor.map(|cursor| format!("&cursor={}", encoded(cursor))).unwrap_or_default();
        format!("{path}?limit={PAGE}{}{cursor}", self.0)
    }

    /// The path without pages, as a stream has it.
    #[must_use]
    pub fn whole(&self, path: &str) -> String {
        match self.0.strip_prefix('&') {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        }
    }
}

/// Text as a query may hold it: what RFC 3986 reserves, and what is not ASCII, byte by byte.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_add_parameters() {
        let query = Query::default().with("label", "a=b&limit=1 ü").with_some("team", None::<&str>);
        assert_eq!(
            query.page("/v1/apps", Some("x/y")),
            "/v1/apps?limit=1000&label=a%3Db%26limit%3D1%20%C3%BC&cursor=x/y"
        );
        assert_eq!(Query::default().with("app", "a/b").whole("/v1/events"), "/v1/events?app=a/b");
        assert_eq!(Query::default().whole("/v1/events"), "/v1/events");
    }
}
