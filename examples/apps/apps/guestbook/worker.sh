# Renders the page again whenever an entry has been added. What it prints is its log.
seen=
while :; do
    now=$(wc -l <data/entries)
    if [ "$now" != "$seen" ]; then
        sh render.sh && seen=$now && echo "rendered $now entries"
    fi
    sleep 1
done
