// One person: what they did, what they would be shown, and a visitor who watches in their place. Watching sends real events.

import { cards, get, recommend, tell } from "./api.js";
import { ago } from "./dashboard.js";
import { html } from "./charts.js";

const $ = (id) => document.getElementById(id);
const COUNT = 12; // fills rows of 6, 4, 3 and 2
const CASES = { exact_hit: ["exact hit", "exact"], content_hit: ["content hit", "content"], miss: ["miss: the nearest there is", "miss"] };
const SOUND_ON = '<svg viewBox="0 0 24 24"><path d="M4 9v6h4l5 4V5L8 9zM16 9a4 4 0 0 1 0 6M19 6a8 8 0 0 1 0 12"/></svg>';
const SOUND_OFF = '<svg viewBox="0 0 24 24"><path d="M4 9v6h4l5 4V5L8 9zM17 9l5 6M22 9l-5 6"/></svg>';

let user = null;
let playing = null; // the card that plays: {stop(reason)}
let sound = false;

export function startPerson() {
  $("picker").onsubmit = (event) => { event.preventDefault(); choose($("user").value); };
  $("next").onclick = () => showFeed();
  addEventListener("pagehide", () => playing?.stop());
  setInterval(() => user !== null && !document.hidden && showHistory(), 4000);
}

export function people(ids) {
  const chips = ids.map((id) => html("button", { type: "button", textContent: id, onclick: () => choose(String(id)) }));
  $("recent").replaceChildren(...chips);
  mark();
  if (user === null) choose(ids.length ? String(ids[0]) : "1");
}

function mark() {
  for (const chip of $("recent").children) chip.setAttribute("aria-current", String(chip.textContent === user));
}

async function choose(id) {
  playing?.stop();
  user = id;
  $("user").value = id;
  mark();
  await Promise.all([showHistory(), showFeed()]);
}

async function showHistory() {
  const asked = user;
  let answer;
  try {
    answer = await get(`/api/users/${asked}`);
  } catch (error) {
    $("history-note").textContent = error.message;
    return;
  }
  if (asked !== user) return;
  const { history, missing } = answer;
  const entries = merge(history);
  $("history-note").textContent = missing ? `not readable (${missing})` : history.length ? `${history.length} interactions kept, newest first` : "";
  const key = entries.map((one) => `${one.item}:${one.ts}:${one.words}`).join();
  if ($("history").dataset.key === `${asked}|${key}`) return;
  $("history").dataset.key = `${asked}|${key}`;
  $("history").replaceChildren(...entries.map(({ card, ts, words }) => html("div", { className: "mini", title: `${card?.title ?? ""} · ${new Date(ts).toLocaleString()}` },
    html("img", { src: card?.poster ?? "", alt: card?.title ?? "", loading: "lazy" }),
    html("span", { className: "did", textContent: words }),
    html("span", { textContent: `${ago((Date.now() - ts) / 1000)} ago` }))));
  if (!entries.length) $("history").replaceChildren(html("span", { className: "quiet", textContent: missing ? "The feature store does not answer" : "Nothing yet: watch something in the feed below" }));
}

// A click, a watch and a like of one video stand beside each other in the history: one picture tells them all.
function merge(history) {
  const merged = [];
  for (const { entry, card } of history) {
    const did = entry.play_ms == null ? entry.kinds : [`${(entry.play_ms / 1000).toFixed(0)} s`, ...entry.kinds];
    const last = merged.at(-1);
    if (last && last.item === entry.item_id) last.did.push(...did);
    else merged.push({ item: entry.item_id, ts: entry.ts, did: [...did], card });
  }
  const weight = (word) => (word === "click" ? 2 : /^\d/.test(word) ? 1 : 0); // the rarest first: there is little room
  return merged.map(({ did, ...rest }) => ({ ...rest, words: [...new Set(did)].sort((a, b) => weight(a) - weight(b)).join(", ") || "seen" }));
}

async function showFeed() {
  playing?.stop();
  const asked = user;
  let feed, shown;
  try {
    feed = await recommend(asked, COUNT);
    shown = await cards(feed.items.map((item) => item.item_id));
  } catch (error) {
    $("feed").replaceChildren(html("span", { className: "quiet", textContent: `No feed: ${error.message}` }));
    return;
  }
  if (asked !== user) return;
  const words = [`${Math.round(feed.took_ms)} ms`, feed.model_version ?? "without a model"];
  if (feed.degraded) words.push(`degraded (${feed.degraded})`);
  $("feed-note").textContent = words.join(" · ");
  $("feed").replaceChildren(...feed.items.map((item, index) => cardOf(item, shown[index])));
  if (!feed.items.length) $("feed").replaceChildren(html("span", { className: "quiet", textContent: "There is no video yet" }));
}

function cardOf(item, card) {
  const node = document.getElementById("card").content.cloneNode(true).firstElementChild;
  const find = (query) => node.querySelector(query);
  find("img").src = card?.poster ?? item.uri;
  find("strong").textContent = card?.title ?? `Video ${item.item_id}`;
  find("strong").title = card ? Object.entries(card.attributes).map((pair) => pair.join(" ")).join(" · ") : "";
  find(".sid").textContent = item.sid && item.case !== "exact_hit" ? `${item.sid.join(".")} → ${item.served_sid.join(".")}` : item.served_sid.join(".");
  const [words, ink] = CASES[item.case] ?? ["popular, without the model", "other"];
  const dot = html("i");
  dot.style.background = `var(--${ink})`;
  const likely = item.policy_logprob == null ? "" : ` · p ${probability(item.policy_logprob)}`;
  find(".why").append(dot, `${words}${likely}`);
  find(".tag").textContent = `${item.generated ? "generated · " : ""}${Math.max(1, Math.round(item.duration_ms / 1000))} s`;
  const player = item.generated ? videoPlayer(item, find) : posterPlayer(item);
  const watch = watcher(item, node, player);
  find(".play").onclick = () => (playing === watch ? watch.stop() : watch.start());
  find(".like").onclick = (event) => {
    event.currentTarget.setAttribute("aria-pressed", "true");
    send(item, "engagements", "engagement/1", { kind: "like", at_ms: Math.round(player.position() * 1000) }, "like");
  };
  find(".hate").onclick = () => {
    node.classList.add("hated");
    if (playing === watch) watch.stop();
    send(item, "engagements", "engagement/1", { kind: "hate", at_ms: null }, "not for me");
  };
  return node;
}

const probability = (logprob) => (logprob > -4.6 ? `${(100 * Math.exp(logprob)).toFixed(0)} %` : `1 in ${Math.round(Math.exp(-logprob)).toLocaleString()}`);

// A player: start(), stop(), position() in s of the video, played() in s since it was started, ended(callback).
function videoPlayer(item, find) {
  const button = find(".sound");
  let video = null, played = 0, last = 0, done = () => {};
  const dress = () => { button.innerHTML = sound ? SOUND_ON : SOUND_OFF; if (video) video.muted = !sound; };
  button.hidden = false;
  button.onclick = () => { sound = !sound; dress(); };
  dress();
  return {
    start() {
      if (!video) {
        video = html("video", { src: item.uri, playsInline: true, preload: "auto" });
        video.ontimeupdate = () => { if (video.currentTime > last) played += video.currentTime - last; last = video.currentTime; };
        video.onended = () => done();
        find(".play").before(video);
      }
      played = 0;
      last = video.currentTime = 0;
      dress();
      video.play().catch(() => done());
    },
    stop() { video?.pause(); },
    position: () => video?.currentTime ?? 0,
    played: () => played,
    ended(callback) { done = callback; },
  };
}

// A catalogue video has no file here: its picture stands for it, and time passes all the same.
function posterPlayer(item) {
  let since = null, played = 0, done = () => {}, timer = 0;
  const length = Math.max(1, item.duration_ms / 1000);
  const now = () => Math.min(length, since === null ? played : (performance.now() - since) / 1000);
  return {
    start() { since = performance.now(); timer = setTimeout(() => done(), length * 1000); },
    stop() { played = now(); since = null; clearTimeout(timer); },
    position: now,
    played: now,
    ended(callback) { done = callback; },
  };
}

function watcher(item, node, player) {
  const bar = node.querySelector(".progress i");
  const length = Math.max(1, item.duration_ms / 1000);
  const watch = {
    start() {
      playing?.stop();
      playing = watch;
      node.classList.add("playing");
      player.start();
      send(item, "engagements", "engagement/1", { kind: "click", at_ms: 0 }, "click");
      requestAnimationFrame(watch.tick);
    },
    tick() {
      if (playing !== watch) return;
      bar.style.width = `${Math.min(100, (player.position() / length) * 100)}%`;
      requestAnimationFrame(watch.tick);
    },
    stop(finished = false) {
      if (playing !== watch) return;
      playing = null;
      node.classList.remove("playing");
      player.stop();
      const played = finished && item.duration_ms ? item.duration_ms : Math.round(player.played() * 1000);
      send(item, "watches", "watch/1", { play_ms: played, duration_ms: item.duration_ms, finished }, `watched ${(played / 1000).toFixed(1)} s`);
    },
  };
  player.ended(() => watch.stop(true));
  return watch;
}

async function send(item, topic, schema, fields, words) {
  let reason;
  try {
    reason = await tell(user, item, topic, schema, fields);
  } catch (error) {
    reason = error.message;
  }
  toast(reason ? `${words}: not taken (${reason})` : `${words} → ${topic}`);
}

function toast(words) {
  const node = html("div", { textContent: words });
  $("toasts").append(node);
  setTimeout(() => node.remove(), 3200);
}
