// SPDX-License-Identifier: Apache-2.0
// The page: it asks for the state every two seconds and shows it.  Text from the daemon is only ever set as text.

const EVERY = 2000;
const $ = (id) => document.getElementById(id);
let token = sessionStorage.getItem("token") || "";
let before = null; // the state before this one, for rates
const maps = new Map(); // "volume@snapshot" -> {cells, at}
const open = new Set(); // the <details> that are open
let explanations = null;

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key === "on") for (const [event, call] of Object.entries(value)) made.addEventListener(event, call);
    else if (value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function svg(name, properties = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return `${unit && bytes < 10 ? bytes.toFixed(1) : Math.round(bytes)} ${units[unit]}`;
}

const time = (text) => new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

async function ask(method, path, body) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const content = answer.status === 204 ? null : await answer.json();
  if (!answer.ok) throw Object.assign(new Error(`${content.message}: ${content.remedy}`), { status: answer.status });
  return content;
}

// Ask the person; return the text, or null if the answer is no.
function prompt(title, text, label, value = "", secret = false) {
  const box = $("ask");
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-label").textContent = label;
  $("ask-label").hidden = $("ask-value").hidden = !label;
  $("ask-value").type = secret ? "password" : "text";
  $("ask-value").value = value;
  box.returnValue = "no";
  box.showModal();
  return new Promise((done) => box.addEventListener("close", () => done(box.returnValue === "yes" ? $("ask-value").value : null), { once: true }));
}

async function change(method, path, body, done) {
  try {
    await ask(method, path, body);
    say(done);
  } catch (problem) {
    say(problem.message, "bad");
    if (problem.status === 401) await unlock();
  }
  await look();
}

async function unlock() {
  const given = await prompt("Token", "The token is kept until this tab is closed.", "Token", "", true);
  if (given === null) return;
  token = given;
  sessionStorage.setItem("token", token);
  await look();
}

let said = 0;
function say(text, kind = "") {
  $("state").textContent = text;
  $("state").className = kind;
  said = Date.now();
}

const url = (volume, name) => `/v1/volumes/${encodeURIComponent(volume)}/snapshots/${encodeURIComponent(name)}`;

function alerts(state) {
  if (!state.alerts.length) return [element("p", { class: "none" }, "No trouble.")];
  return state.alerts.map((alert) => {
    const key = `alert ${alert.code} ${alert.subject}`;
    return element("div", { class: "card" },
      element("div", { class: "bad" }, alert.message), element("div", {}, alert.remedy),
      remembered(key, "Why is that?", element("p", { class: "soft" }, (explanations || {})[alert.code] || "")));
  });
}

function remembered(key, title, ...content) {
  const made = element("details", { on: { toggle: () => (made.open ? open.add(key) : open.delete(key)) } }, element("summary", {}, title), ...content);
  made.open = open.has(key);
  return made;
}

// The snapshots on a line of time; the height of a bar is what the snapshot keeps.
function timeline(snapshots) {
  const width = 1000, height = 60;
  const times = snapshots.map((snapshot) => Date.parse(snapshot.taken));
  const first = Math.min(...times), span = Math.max(1, Date.now() - first);
  const most = Math.max(1, ...snapshots.map((snapshot) => snapshot.preserved_bytes));
  const bars = snapshots.map((snapshot, index) => {
    const high = 4 + (height - 14) * Math.sqrt(snapshot.preserved_bytes / most);
    const bar = svg("rect", { x: 4 + (width - 16) * (times[index] - first) / span, y: height - 6 - high, width: 8, height: high });
    if (snapshot.state !== "active") bar.setAttribute("class", "bad");
    bar.append(svg("title", {}));
    bar.firstChild.textContent = `${snapshot.name}, ${time(snapshot.taken)}: ${size(snapshot.preserved_bytes)}`;
    return bar;
  });
  const text = `${snapshots.length} snapshots since ${time(snapshots[0].taken)}; the newest bar is on the right`;
  return svg("svg", { class: "line", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": text },
    svg("path", { d: `M0 ${height - 5.5}H${width}` }), ...bars);
}

function drawn(cells) {
  const canvas = element("canvas", { class: "map", width: cells.length, height: 1, role: "img",
    "aria-label": `Parts of the volume that changed since: ${Math.round(100 * cells.reduce((a, b) => a + b, 0) / cells.length)} %` });
  const context = canvas.getContext("2d");
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--main");
  cells.forEach((part, index) => {
    context.globalAlpha = part && 0.25 + 0.75 * part;
    context.fillStyle = colour;
    context.fillRect(index, 0, 1, 1);
  });
  return canvas;
}

async function map(volume, name) {
  const key = `${volume}@${name}`;
  try {
    maps.set(key, (await ask("GET", `${url(volume, name)}/changes?cells=512`)).cells);
  } catch (problem) {
    say(problem.message, "bad");
  }
  await look();
}

function snapshotRow(snapshot) {
  const { volume, name } = snapshot, key = `${volume}@${name}`;
  const cell = (title, content, kind = "") => element("td", { "data-title": title, class: kind }, content);
  const actions = element("span", { class: "row" },
    element("button", { type: "button", "aria-label": `Map of ${key}`, on: { click: () => map(volume, name) } }, "Map"),
    snapshot.hold
      ? element("button", { type: "button", "aria-label": `Release ${key}`, on: { click: () => change("PATCH", url(volume, name), { hold: "" }, `${key} is released`) } }, "Release")
      : element("button", { type: "button", "aria-label": `Hold ${key}`, on: { click: async () => {
          const reason = await prompt(`Hold ${key}`, "Nobody deletes it then, and no schedule.", "Reason", "held on the status page");
          if (reason) await change("PATCH", url(volume, name), { hold: reason }, `${key} is held`);
        } } }, "Hold"),
    element("button", { type: "button", "aria-label": `Export ${key}`, on: { click: async () => {
      const path = await prompt(`Export ${key}`, "The daemon writes a qcow2 image on its own machine.", "Path of the new file", `/var/tmp/${volume}-${name}.qcow2`);
      if (path) await change("POST", `${url(volume, name)}/export`, { path, format: "qcow2" }, `exporting ${key}`);
    } } }, "Export"),
    element("button", { type: "button", "aria-label": `Delete ${key}`, on: { click: async () => {
      if (await prompt(`Delete ${key}`, "Its old data is lost, unless an older snapshot needs it.", "") !== null) await change("DELETE", url(volume, name), undefined, `deleting ${key}`);
    } } }, "Delete"));
  const row = element("tr", {}, cell("Snapshot", name), cell("Taken", time(snapshot.taken)), cell("Keeps", size(snapshot.preserved_bytes), "number"),
    cell("On disk", size(snapshot.used_bytes), "number"),
    cell("State", snapshot.hold ? `held: ${snapshot.hold}` : snapshot.state, snapshot.state === "active" ? "" : "bad"),
    cell("LUN", snapshot.view_lun === null ? "–" : String(snapshot.view_lun), "number"), cell("", actions));
  const cells = maps.get(key);
  return cells ? [row, element("tr", {}, element("td", { colspan: 7 }, drawn(cells)))] : [row];
}

function volumes(state, snapshots) {
  if (!state.volumes.length) return [element("p", { class: "none" }, "There are no volumes.")];
  return state.volumes.map((volume) => {
    const own = snapshots.filter((snapshot) => snapshot.volume === volume.name);
    const keeps = own.reduce((sum, snapshot) => sum + snapshot.preserved_bytes, 0);
    const part = Math.min(100, 100 * keeps / volume.size);
    const lun = volume.lun === null ? "" : `LUN ${volume.lun}, `;
    const head = ["Snapshot", "Taken", "Keeps", "On disk", "State", "LUN", "Actions"];
    const table = own.length && element("div", { class: "wide" }, element("table", { class: "stack" },
      element("thead", {}, element("tr", {}, ...head.map((title, index) => element("th", { scope: "col", class: [2, 3, 5].includes(index) ? "number" : "" }, title)))),
      element("tbody", {}, ...own.toReversed().flatMap(snapshotRow))));
    return element("article", { class: "card", "aria-label": `Volume ${volume.name}` },
      element("div", { class: "row" }, element("h3", {}, volume.name),
        element("span", { class: volume.state === "online" ? "good" : "bad" }, volume.state),
        element("span", { class: "soft" }, `${lun}${size(volume.size)}, ${size(volume.primary_used_bytes)} on disk`),
        element("button", { type: "button", "aria-label": `Take a snapshot of ${volume.name}`, on: { click: async () => {
          const stamp = new Date().toISOString().slice(0, 16).replace(/:/g, "");
          const name = await prompt(`A snapshot of ${volume.name}`, "Writes are held for some milliseconds.", "Name", `by-hand-${stamp}`);
          if (name) await change("POST", `/v1/volumes/${encodeURIComponent(volume.name)}/snapshots`, { name }, `took ${volume.name}@${name}`);
        } } }, "Take a snapshot")),
      volume.trouble ? element("p", { class: "bad" }, volume.trouble) : null,
      volume.restoring ? element("p", { class: "warn" }, `It is being rolled back to ${volume.restoring}.`) : null,
      element("div", { class: "soft" }, `${own.length} snapshots keep ${size(keeps)}, ${size(volume.snapshot_bytes)} on disk`),
      element("div", { class: "bar", role: "img", "aria-label": `Snapshots keep ${part.toFixed(1)} % of the volume` }, bar(part)),
      own.length ? timeline(own) : null, table || null);
  });
}

function bar(percent) {
  const made = element("span");
  made.style.width = `${percent}%`;
  return made;
}

function jobs(state) {
  if (!state.jobs.length) return [element("p", { class: "none" }, "No job runs.")];
  return state.jobs.map((job) => {
    const percent = job.total ? 100 * job.done / job.total : 0;
    return element("div", { class: "card" }, element("div", { class: "row" }, element("strong", {}, job.kind), job.subject,
      element("span", { class: "soft" }, job.total ? `${size(job.done)} of ${size(job.total)}` : "begins")),
      element("div", { class: "bar", role: "progressbar", "aria-label": `${job.kind} ${job.subject}`, "aria-valuenow": Math.round(percent), "aria-valuemin": 0, "aria-valuemax": 100 }, bar(percent)));
  });
}

function replications(state) {
  return state.replications.map((one) => {
    const age = one.lag_seconds < 120 ? `${Math.round(one.lag_seconds)} s` : one.lag_seconds < 7200 ? `${Math.round(one.lag_seconds / 60)} min` : `${Math.round(one.lag_seconds / 3600)} h`;
    return element("div", { class: "card" }, element("div", { class: "row" }, element("strong", {}, `${one.volume} to ${one.name}`), one.state,
      element("span", { class: "soft" }, one.arrived ? `has ${one.arrived}, ${age} old` : "has no snapshot yet")), one.trouble);
  });
}

function sessions(state, passed) {
  if (!state.sessions.length) return [element("p", { class: "none" }, "No initiator is logged in.")];
  const known = new Map((before ? before.sessions : []).map((session) => [`${session.initiator} ${session.address}`, session]));
  const rate = (session, key) => {
    const old = known.get(`${session.initiator} ${session.address}`);
    return old && passed && session[key] !== null ? Math.max(0, (session[key] - old[key]) / passed) : null;
  };
  const cell = (title, content, kind = "") => element("td", { "data-title": title, class: kind }, content);
  const shown = (value, unit) => (value === null ? "–" : unit ? `${size(value)}/s` : Math.round(value).toLocaleString());
  const head = ["Initiator", "Address", "Commands/s", "Read", "Written"];
  return [element("div", { class: "wide card" }, element("table", { class: "stack" },
    element("thead", {}, element("tr", {}, ...head.map((title, index) => element("th", { scope: "col", class: index > 1 ? "number" : "" }, title)))),
    element("tbody", {}, ...state.sessions.map((session) => element("tr", {}, cell("Initiator", session.initiator), cell("Address", session.address),
      cell("Commands/s", shown(rate(session, "commands"), false), "number"), cell("Read", shown(rate(session, "bytes_read"), true), "number"),
      cell("Written", shown(rate(session, "bytes_written"), true), "number"))))))];
}

// Put the new content in place; what has the focus keeps it.
function place(id, nodes) {
  const held = $(id).contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  const made = element("div", {}, ...nodes);
  if (made.innerHTML !== $(id).dataset.shown || nodes.some((node) => node.querySelector && node.querySelector("canvas"))) {
    $(id).dataset.shown = made.innerHTML;
    $(id).replaceChildren(...made.childNodes);
    if (held) $(id).querySelector(`[aria-label="${CSS.escape(held)}"]`)?.focus();
  }
}

let last = 0;
async function look() {
  try {
    if (explanations === null) explanations = await ask("GET", "/v1/explanations");
    const [state, snapshots] = await Promise.all([ask("GET", "/v1/status"), ask("GET", "/v1/snapshots")]);
    const now = performance.now(), passed = last ? (now - last) / 1000 : 0;
    last = now;
    $("where").textContent = `${state.version}, ${state.target} on ${state.portal}; ${size(state.space_free_bytes)} of ${size(state.space_total_bytes)} free`;
    document.title = state.alerts.length ? `(${state.alerts.length}) wolun` : "wolun";
    place("alerts", alerts(state));
    place("volumes", volumes(state, snapshots));
    $("replications-section").hidden = !state.replications.length;
    place("replications", replications(state));
    place("jobs", jobs(state));
    place("sessions", sessions(state, passed));
    before = state;
    if (Date.now() - said > 6000) say(state.alerts.length ? `${state.alerts.length} alerts` : "No trouble", state.alerts.length ? "bad" : "good");
  } catch (problem) {
    say(problem.status === 401 ? "This page needs a token." : `The daemon does not answer: ${problem.message}`, "bad");
    if (problem.status === 401 && !$("ask").open) await unlock();
  }
}

$("unlock").addEventListener("click", unlock);
await look();
setInterval(() => { if (!document.hidden) look(); }, EVERY);
