// Talks to the server. Item and user ids are 64 bits wide, which JavaScript's numbers are not: long ones stay text.

const LONG_ID = /("(?:item_id|user_id)":)(-?\d{16,})/g;

async function read(response) {
  const text = (await response.text()).replace(LONG_ID, '$1"$2"');
  const value = text ? JSON.parse(text) : null;
  if (!response.ok) throw new Error(value?.detail ?? `HTTP ${response.status}`);
  return value;
}

export const get = async (path) => read(await fetch(path, { cache: "no-store" }));

export async function recommend(user, count) {
  const body = `{"user_id":${user},"scene":"page","count":${count}}`; // by hand: the id may be too long for a number
  return read(await fetch("/recommend", { method: "POST", headers: { "Content-Type": "application/json" }, body }));
}

export async function cards(ids) {
  return ids.length ? get(`/api/cards?ids=${ids.join(",")}`) : [];
}

const identifier = () =>
  [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** Send one label of a served item; answers the reason it was rejected, or null. */
export async function tell(user, item, topic, schema, fields) {
  const event = {
    topic, schema, event_id: identifier(), ts: Date.now(),
    impression_id: item.impression_id, impression_ts: item.impression_ts, ...fields,
  };
  const body = `{"events":[{"user_id":${user},${JSON.stringify(event).slice(1)}]}`;
  const request = { method: "POST", headers: { "Content-Type": "application/json" }, body, keepalive: true };
  const answer = await read(await fetch("/events", request));
  return answer.rejected[0]?.reason ?? null;
}
