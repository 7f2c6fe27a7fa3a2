#!/usr/bin/env bash
# Monitors the service without Prometheus: checks /health and raises an alarm after three failures in a row.
#
#   deploy/monitor.sh [URL]           default http://127.0.0.1:8000
#
# INTERVAL       seconds between two checks (30)
# FAILURES       failures in a row that raise the alarm (3)
# ALERT_WEBHOOK  address that gets each alarm and each recovery as JSON: {"text": "…"}, as chat services expect
# LOOKS          number of checks before it ends; 0, the default, checks until it is stopped
set -uo pipefail

url="${1:-http://127.0.0.1:8000}"
interval="${INTERVAL:-30}"
bound="${FAILURES:-3}"
looks="${LOOKS:-0}"

tell() {
    printf '%s %s\n' "$(date -u +%FT%TZ)" "$1"
    [ -n "${ALERT_WEBHOOK:-}" ] || return 0
    curl -fsS -m 10 -H 'Content-Type: application/json' -d "{\"text\": \"$1\"}" "$ALERT_WEBHOOK" >/dev/null \
        || printf 'the alarm could not be sent to ALERT_WEBHOOK\n' >&2
}

failures=0
look=0
while :; do
    if curl -fsS -m 5 -o /dev/null "$url/health" 2>/dev/null; then
        [ "$failures" -lt "$bound" ] || tell "ceoagent at $url answers again"
        failures=0
    else
        failures=$((failures + 1))
        [ "$failures" -ne "$bound" ] || tell "ceoagent at $url has not answered $bound times in a row"
    fi
    look=$((look + 1))
    [ "$looks" -eq 0 ] || [ "$look" -lt "$looks" ] || exit 0
    sleep "$interval"
done
