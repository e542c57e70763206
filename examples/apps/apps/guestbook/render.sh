# Writes public/index.html out of the entries. Git never had either, so a sync leaves both alone.
set -eu
mkdir -p data
touch data/entries
{
    printf '<!doctype html>\n<meta charset="utf-8">\n<title>%s</title>\n<h1>%s</h1>\n' "$TITLE" "$TITLE"
    printf '<form method="post" action="/cgi-bin/sign"><input name="text" maxlength="200"><button>Sign</button></form>\n<ul>\n'
    while IFS= read -r entry; do printf '<li>%s</li>\n' "$entry"; done <data/entries
    printf '</ul>\n'
} >public/.index.new
mv public/.index.new public/index.html
