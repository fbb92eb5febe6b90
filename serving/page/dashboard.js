// What the system does now, from /api/stats. Every part may be missing; then its panel says so.

import { compact, draw, html, spark, timeline } from "./charts.js";

const $ = (id) => document.getElementById(id);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const STEP_S = 2, SMOOTH = 5;
const FLOORS = { popularity: "popular", last_author: "last author" };

export function ago(seconds) {
  if (seconds == null || Number.isNaN(seconds)) return "–";
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

export function showLost(error) {
  $("health").className = "chip bad";
  $("health").textContent = `no answer from the server: ${error.message}`;
}

export function showStats(stats) {
  stats.series = since(stats.series, stats.now - stats.server.up_s);
  health(stats);
  tiles(stats);
  charts(stats);
  learning(stats);
  versions(stats);
  generation(stats);
}

// The server's own start is where its curves begin, with a minute at least.
function since(series, start) {
  const first = Math.min(series.at.findIndex((at) => at >= start - STEP_S), series.at.length - 60 / STEP_S);
  return first > 0 ? Object.fromEntries(Object.entries(series).map(([name, values]) => [name, values.slice(first)])) : series;
}

function health({ missing, server, series }) {
  const degraded = (series.degraded ?? []).slice(-5).reduce((sum, value) => sum + value, 0);
  const words = [];
  if (degraded) words.push("degraded answers");
  if (missing.length) words.push(`not here: ${missing.join(", ")}`);
  $("health").className = words.length ? "chip warn" : "chip";
  $("health").textContent = words.length ? words.join(" · ") : `all parts run · ${server.model_version ?? "no model yet"}`;
}

// Counts per second, as a running mean over the last steps, so that a quiet curve stays readable.
function rate(series, name) {
  const values = series[name] ?? series.at.map(() => 0);
  return values.map((_, i) => {
    const window = values.slice(Math.max(0, i - SMOOTH + 1), i + 1);
    return window.reduce((sum, value) => sum + value, 0) / (window.length * STEP_S);
  });
}

const sum = (...all) => all[0].map((_, i) => all.reduce((total, values) => total + values[i], 0));

function eventRates(series) {
  return { impressions: rate(series, "in_impressions"), watches: rate(series, "in_watches"), engagements: rate(series, "in_engagements"),
    conversions: sum(rate(series, "in_conversions"), rate(series, "in_questionnaires")) };
}

function tile(name, value, unit, note, values, ink) {
  const unitNode = html("i", { textContent: unit });
  return html("div", { className: "tile" }, html("span", { textContent: name }), html("b", { textContent: value }, unitNode),
    html("em", { textContent: note, title: note }), spark(values ?? [], color(ink ?? "accent")));
}

function tiles({ now, server, series, videos, writer }) {
  const events = sum(...Object.values(eventRates(series)));
  const samples = sum(rate(series, "in_samples"), rate(series, "in_corrections"));
  const requests = rate(series, "requests");
  const latency = server.latency_ms, lag = server.sample_lag_ms;
  const generated = rate(series, "generated");
  const served = sum(rate(series, "exact_hit"), rate(series, "content_hit"), rate(series, "miss"));
  const exact = rate(series, "exact_hit");
  const share = exact.map((value, i) => (served[i] ? value / served[i] : null));
  const feature = writer?.event_to_written_ms?.p99;
  const behind = now - server.watermark_ts / 1000;
  const trained = !server.watermark_ts ? "–" : behind < 86_400 ? `${ago(behind)} ago` : new Date(server.watermark_ts).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  $("tiles").replaceChildren(
    tile("Events", compact(round(events.at(-1))), "/s", `${compact(round(rate(series, "in_dead_letters").at(-1)))} dead letters/s`, events),
    tile("Samples", compact(round(samples.at(-1))), "/s", lag.p99 == null ? "none seen yet" : `ready → in Kafka p99 ${compact(lag.p99)} ms`, samples, "b"),
    tile("Answers", compact(round(requests.at(-1))), "/s", latency.p99 == null ? "nobody asks now" : `p50 ${compact(latency.p50)} · p99 ${compact(latency.p99)} ms`, requests, "d"),
    tile("Exact hits", percent(share.at(-1)), "", "of the SIDs that the model asked for", share, "exact"),
    tile("Model", server.model_since ? ago(now - server.model_since) : "–", "old", `has learnt up to ${trained}${feature == null ? "" : ` · features p99 ${compact(feature)} ms`}`, [], "accent"),
    tile("Videos", compact(videos.total), "", `${compact(videos.generated ?? 0)} generated · ${compact(videos.sids)} SIDs`, generated, "c"),
  );
}

const round = (value) => (value == null ? null : value < 10 ? Math.round(value * 10) / 10 : Math.round(value));
const percent = (value) => (value == null ? "–" : `${Math.round(value * 100)} %`);

function charts({ series }) {
  const xs = series.at, format = (value) => compact(round(value));
  draw($("cases"), {
    xs, stacked: true, label: clock, format, nothing: "Nobody has asked for a feed in the last minutes",
    series: [
      { name: "exact hit", color: color("exact"), values: rate(series, "exact_hit") },
      { name: "content hit", color: color("content"), values: rate(series, "content_hit") },
      { name: "miss", color: color("miss"), values: rate(series, "miss") },
      { name: "without the model", color: color("other"), values: rate(series, "other") },
    ],
  });
  const colors = { impressions: "a", watches: "b", engagements: "c", conversions: "d" };
  draw($("events"), {
    xs, label: clock, format, nothing: "No events yet",
    series: Object.entries(eventRates(series)).map(([name, values]) => ({ name, color: color(colors[name]), values })),
  });
  draw($("latency"), {
    xs, label: clock, format, nothing: "Nobody has asked for a feed in the last minutes",
    series: [{ name: "p99", color: color("c"), values: series.p99 }, { name: "p50", color: color("a"), values: series.p50 }],
  });
}

function learning({ trainer }) {
  const windows = trainer?.prequential ?? trainer?.windows ?? [];
  let trained = 0;
  const xs = windows.map((window) => (trained += window.samples));
  const nothing = trainer ? "The first window of samples is not full yet" : "The trainer is not here";
  const label = (value) => `${compact(Math.round(value))} samples`;
  const names = [...new Set(windows.flatMap((window) => Object.keys(window.floors ?? {})))];
  const floors = names.map((name, index) => ({
    name: `floor: ${FLOORS[name] ?? name.replaceAll("_", " ")}`, dash: true, color: color(["e", "c", "b", "d"][index % 4]),
    values: windows.map((window) => window.floors?.[name] ?? null),
  }));
  draw($("recall"), {
    xs, label, nothing, format: (value) => (value == null ? "–" : value.toFixed(3)),
    series: [{ name: "model", color: color("a"), values: windows.map((window) => window.recall_at_10 ?? null) }, ...floors],
  });
  draw($("loss"), {
    xs, label, nothing, from: null, format: (value) => (value == null ? "–" : value.toFixed(2)),
    series: [{ name: "model", color: color("a"), values: windows.map((window) => window.loss ?? null) }],
  });
}

function versions({ now, models, trainer }) {
  const kind = { swapped: "a", rejected: "bad", rolled_back: "miss" };
  const word = { swapped: "served", rejected: "rejected", rolled_back: "rolled back" };
  const recent = models.slice(-60);
  timeline($("versions"), {
    points: recent.map((model) => ({ at: model.at, color: color(kind[model.outcome]), title: `${model.version} ${word[model.outcome]} ${clock(model.at)} ${model.detail}` })),
    from: recent[0]?.at ?? now - 60, to: now, label: clock, nothing: "No version was published yet",
  });
  const speed = trainer?.samples_per_s;
  $("versions-note").textContent = speed == null ? "as they came to serve" : `trained at ${compact(round(speed))} samples/s`;
  $("version-list").replaceChildren(...recent.slice(-4).reverse().map((model) => html("li", {},
    html("b", { textContent: model.version }),
    html("span", { textContent: `${model.samples_trained == null ? "" : `${compact(model.samples_trained)} samples · `}${word[model.outcome]} ${ago(now - model.at)} ago` }))));
}

let shownVideos = "";

function generation({ now, queue, videos, generators }) {
  const wanted = queue.most_wanted;
  const top = Math.max(1, ...wanted.map((wish) => wish.demand ?? 0));
  $("queue-note").textContent = queue.sids ? `${compact(queue.sids)} SIDs without a video wait` : "nothing waits";
  $("wanted").replaceChildren(...wanted.map((wish) => {
    const bar = html("i");
    bar.style.width = `${((wish.demand ?? 0) / top) * 100}%`;
    bar.style.background = color(wish.reason === "miss" ? "miss" : "content");
    const waited = wish.demand == null ? "waits" : `asked ${wish.demand}×, for ${ago(now - wish.since / 1000)}`;
    return html("li", {}, html("span", { className: "code", textContent: wish.sid.join(".") }), html("span", { className: "meter" }, bar), html("span", { className: "quiet", textContent: waited }));
  }));
  if (!wanted.length) $("wanted").replaceChildren(html("li", { className: "none" }, html("span", { className: "quiet", textContent: "Every SID that was asked has a video" })));
  const making = generators.map((one) => one.making?.split("|").at(-1)).filter(Boolean);
  const made = Math.max(0, ...generators.map((one) => one.generated ?? 0));
  $("videos-note").textContent = !generators.length ? "no generator is here" : making.length ? `${made} made · now ${making.join(", ")}` : `${made} made · nothing to do`;
  const key = videos.newest.map((video) => video.uri).join();
  if (key === shownVideos && $("newest").childElementCount) return;
  shownVideos = key;
  $("newest").replaceChildren(...videos.newest.map((video) => {
    const screen = html("video", { src: `${video.uri}#t=1`, muted: true, loop: true, playsInline: true, preload: "metadata" });
    screen.onclick = () => { screen.muted = !screen.paused; screen.paused ? screen.play() : screen.pause(); };
    screen.onpointerenter = () => screen.play().catch(() => {});
    screen.onpointerleave = () => screen.pause();
    const waited = video.waited_ms == null ? "" : ` · ${ago(video.waited_ms / 1000)} after it was asked`;
    return html("figure", {}, screen, html("span", { className: "code", textContent: video.sid.join(".") }), html("div", { textContent: `${clock(video.at_ms / 1000)}${waited}` }));
  }));
  if (!videos.newest.length) $("newest").replaceChildren(html("span", { className: "quiet", textContent: "None was generated yet" }));
}
