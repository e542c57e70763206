//! Reads server-sent events, as the HTML standard writes them, from pieces of any size.

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// Its place in the stream; empty where it has none.
    pub id: String,
    /// Its kind; empty for the usual one.
    pub event: String,
    /// What it says.
    pub data: String,
}

/// What has come of a stream.
#[derive(Debug, Default)]
pub struct Reader {
    line: Vec<u8>,
    message: Message,
    has_data: bool,
}

/// The longest line that is kept: an event of the API is a few KiB. The rest of a longer one is dropped.
const LONGEST_LINE: usize = 4 << 20;

impl Reader {
    /// Takes a piece; `each` is given every event that it completes.
    pub fn feed(&mut self, piece: &[u8], each: &mut impl FnMut(Message)) {
        for byte in piece {
            match byte {
                b'\n' => self.end_line(each),
                _ if self.line.len() < LONGEST_LINE => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self, each: &mut impl FnMut(Message)) {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line = line.strip_suffix('\r').unwrap_or(&line);
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            if std::mem::take(&mut self.has_data) {
                each(message);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => value.clone_into(&mut self.message.id),
            "event" => value.clone_into(&mut self.message.event),
            "data" => {
                if self.has_data {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
                self.has_data = true;
            }
            // Comments keep the connection alive; other fields are for other readers.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, piece: usize) -> Vec<Message> {
        let (mut reader, mut read) = (Reader::default(), Vec::new());
        for piece in text.as_bytes().chunks(piece) {
            reader.feed(piece, &mut |message| read.push(message));
        }
        read
    }

    #[test]
    fn pieces_of_any_size_give_the_same_events() {
        let text =
            ": hello\n\nid: 1\ndata: {\"a\":1}\n\nid: 2\r\nevent: gone\r\ndata: x\r\ndata: y\r\n\r\nid: 3\ndata: half";
        let message = |id: &str, event: &str, data: &str| Message {
            id: id.to_owned(),
            event: event.to_owned(),
            data: data.to_owned(),
        };
        let expected = [message("1", "", "{\"a\":1}"), message("2", "gone", "x\ny")];
        for piece in [1, 2, 7, 1000] {
            assert_eq!(read(text, piece), expected, "{piece}");
        }
    }
}
