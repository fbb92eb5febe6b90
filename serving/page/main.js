// The page: the dashboard follows /api/stats once a second, the person's panel follows its visitor.

import { get } from "./api.js";
import { showStats, showLost } from "./dashboard.js";
import { startPerson, people } from "./person.js";

const EVERY_MS = 1000;
const root = document.documentElement;
const theme = document.getElementById("theme");

function paint(choice) {
  root.dataset.theme = choice ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

paint(localStorage.getItem("theme"));
theme.onclick = () => {
  const other = root.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("theme", other);
  paint(other);
};
matchMedia("(prefers-color-scheme: dark)").onchange = () => paint(localStorage.getItem("theme"));

async function follow() {
  try {
    if (!document.hidden) showStats(await get("/api/stats"));
  } catch (error) {
    showLost(error);
  }
  setTimeout(follow, EVERY_MS);
}

async function followPeople() {
  try {
    if (!document.hidden) people((await get("/api/users")).users);
  } catch { /* showStats says that the server is away */ }
  setTimeout(followPeople, 10 * EVERY_MS);
}

follow();
followPeople();
startPerson();
