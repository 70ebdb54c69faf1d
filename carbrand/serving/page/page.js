"use strict";

const byId = (id) => document.getElementById(id);
const SHOWN_BRANDS = 5;
const REASONS = {
  empty: "This file is empty.",
  not_an_image: "This file is not a photo that I can read.",
  truncated: "This photo is damaged: its end is missing.",
  decode_error: "This photo is damaged.",
  too_small: "This photo is too small.",
  too_large: "This photo is too large.",
  aspect_ratio: "This picture is too long and thin for a photo of a car.",
};
let key = "";
let lastPhoto = null;
let numAsked = 0;

async function post(photo) {
  const form = new FormData();
  form.append("photo", photo, "photo");
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch("ask", { method: "POST", body: form, headers });
  const answer = await response.json().catch(() => ({}));
  if (response.ok && !answer.error) return answer;
  throw Object.assign(new Error(answer.error || `the server answered ${response.status}`), { status: response.status });
}

function say(text, isBad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", isBad);
}

function inWords(reason) {
  const [code, ...details] = reason.split(": ");
  return REASONS[code] ? `${REASONS[code]} (${details.join(": ")})` : `No answer: ${reason}.`;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function show(answer, photo) {
  byId("brand").textContent = `${answer.brand}: ${percent(answer.probability)}`;
  byId("unknown").hidden = !answer.is_unknown;
  byId("version").textContent = `Model version ${answer.model_version}.`;
  const shares = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]).slice(0, SHOWN_BRANDS);
  byId("shares").replaceChildren(...shares.map(([brand, share]) => {
    const row = document.createElement("tr");
    const head = row.appendChild(document.createElement("th"));
    head.scope = "row";
    head.textContent = brand;
    const cell = row.appendChild(document.createElement("td"));
    const meter = cell.appendChild(document.createElement("meter"));
    meter.value = share;
    meter.setAttribute("aria-hidden", "true");
    cell.append(` ${percent(share)}`);
    return row;
  }));
  const given = byId("given");
  URL.revokeObjectURL(given.src);
  given.src = URL.createObjectURL(photo);
  given.closest("figure").hidden = false;
  byId("heat").src = answer.heatmap;
  byId("heat").alt = `The photo, bright where it speaks for ${answer.brand}`;
  byId("answer").hidden = false;
}

// A photo in a format that this browser cannot show; the server could read it.
byId("given").addEventListener("error", () => { byId("given").closest("figure").hidden = true; });

async function ask(photo) {
  const number = ++numAsked;  // an answer that comes after the next question is not shown
  lastPhoto = photo;
  byId("answer").hidden = true;
  byId("key").hidden = true;
  say("Looking …");
  try {
    const answer = await post(photo);
    if (number !== numAsked) return;
    show(answer, photo);
    say("");
    byId("brand").focus();
  } catch (error) {
    if (number !== numAsked) return;
    byId("key").hidden = error.status !== 401;
    say(error instanceof TypeError ? "The server cannot be reached. Try again." : inWords(error.message), true);
    if (error.status === 401) byId("key-value").focus();
  }
}

const photoOf = (transfer) => [...(transfer?.files ?? [])][0];

byId("photo").addEventListener("change", (event) => {
  const photo = event.target.files[0];
  if (photo) ask(photo);
  event.target.value = "";  // so that the same photo can be chosen again
});

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key-value").value;
  ask(lastPhoto);
});

for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
  });
}

document.addEventListener("drop", (event) => {
  const photo = photoOf(event.dataTransfer);
  if (photo) ask(photo);
  else say("That was no file. Drop a photo from your disk.", true);
});

document.addEventListener("paste", (event) => {
  const photo = photoOf(event.clipboardData);
  if (photo) ask(photo);
  else if (event.target !== byId("key-value")) say("There is no photo in the clipboard.", true);
});
