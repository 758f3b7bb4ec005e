// Keeps the status page moving: asks for what the page already shows, every two seconds while it is seen.
"use strict";
(() => {
  const EVERY = 2000, SPAN = 300, LEAST_SPAN = 60, WINDOW = 10, FEW = 5;
  const $ = (name) => document.querySelector(`[data-f="${name}"]`);
  const text = (name, value) => { const one = $(name); if (one && one.textContent !== value) one.textContent = value; };
  const samples = [];
  let head = null, failing = 0, timer = 0, hovered = null;

  // How figures look, as config.py has it.
  const three = (n) => String(Number(n.toPrecision(3)));
  function bytes(n) {
    if (Math.abs(n) < 1024) return `${n.toFixed(0)} B`;
    for (const unit of ["KiB", "MiB", "GiB", "TiB"]) {
      n /= 1024;
      if (Math.abs(n) < 999.5 || unit === "TiB") return `${Math.abs(n) < 999.5 ? three(n) : n.toFixed(0)} ${unit}`;
    }
  }
  function seconds(s) {
    if (s === 0) return "0 s";
    if (s < 0.0009995) return `${three(s * 1e6)} µs`;
    if (s < 0.9995) return `${three(s * 1e3)} ms`;
    if (s < 59.95) return `${three(s)} s`;
    const whole = Math.round(s);
    const [unit, size, minor, small] = whole < 3600 ? ["min", 60, "s", 1]
      : whole < 86400 ? ["h", 3600, "min", 60] : ["d", 86400, "h", 3600];
    const rest = Math.floor(whole % size / small);
    return `${Math.floor(whole / size)} ${unit}` + (rest ? ` ${rest} ${minor}` : "");
  }
  const rate = (n) => n === 0 ? "0/s" : n < 0.0095 ? "<0.01/s" : `${n < 100 ? three(n) : n.toFixed(0)}/s`;
  const count = (n, one, many) => `${n} ${n === 1 ? one : many}`;
  const ago = (s) => s < 1 ? "just now" : `${seconds(Math.round(s))} ago`;

  // Prometheus' text: only what the page needs of it.
  function histograms(source, name) {
    const found = new Map();
    const pattern = new RegExp(`^${name}_bucket\\{(.*)\\} (\\S+)$`, "gm");
    for (const [, labels, value] of source.matchAll(pattern)) {
      const op = /op="([^"]*)"/.exec(labels)[1], edge = /le="([^"]*)"/.exec(labels)[1];
      if (!found.has(op)) found.set(op, new Map());
      found.get(op).set(edge === "+Inf" ? Infinity : Number(edge), Number(value));
    }
    return found;
  }
  function sum(found) {
    const all = new Map();
    for (const one of found.values()) for (const [edge, n] of one) all.set(edge, (all.get(edge) || 0) + n);
    return all;
  }
  const total = (histogram) => (histogram && histogram.get(Infinity)) || 0;
  function since(now, before) {
    if (!before || total(before) > total(now)) return now;
    return new Map([...now].map(([edge, n]) => [edge, n - (before.get(edge) || 0)]));
  }
  function quantile(histogram, part) {
    const all = total(histogram);
    if (!all) return null;
    const rank = part * all;
    let low = 0, below = 0;
    for (const [edge, n] of [...histogram].sort((a, b) => a[0] - b[0])) {
      if (n >= rank && n > below) return edge === Infinity ? low : low + (edge - low) * (rank - below) / (n - below);
      [low, below] = [edge, n];
    }
    return low;
  }
  const orDash = (value, shown) => value === null ? "–" : shown(value);

  // Charts: lines over the last minute, then up to five, in an SVG of 300 by 100.
  const charts = {
    rate: { of: (s) => [s.rate], show: rate, least: 1 },
    latency: { of: (s) => [s.p99, s.p50], show: seconds, least: 0.0001, names: ["99 of 100: ", "half: "] },
    memory: { of: (s) => [s.memory], show: bytes, least: 1 << 20 },
    journal: { of: (s) => [s.journal], show: bytes, least: 1 << 20 },
    lag: { of: (s) => [s.lag], show: seconds, least: 5 },
  };
  function nice(value, binary) {
    if (binary) return 2 ** Math.ceil(Math.log2(value));
    const step = 10 ** Math.floor(Math.log10(value));
    return [1, 2, 5, 10].map((n) => n * step).find((n) => n >= value * 0.999);
  }
  function draw(name) {
    const box = document.querySelector(`[data-chart="${name}"]`), chart = charts[name];
    const now = samples[samples.length - 1].at;
    const span = Math.min(SPAN, Math.max(LEAST_SPAN, now - samples[0].at)), x = (s) => 300 - (now - s.at) / span * 300;
    const peak = nice(Math.max(chart.least, ...samples.flatMap(chart.of).filter((v) => v !== null)), chart.show === bytes);
    box.querySelector(".axis").firstChild.textContent = ago(span);
    const y = (v) => 100 - 96 * Math.min(v, peak) / peak;
    box.querySelector(".peak").textContent = chart.show(peak);
    box.querySelectorAll(".line").forEach((line, index) => {
      let path = "", open = false;
      for (const s of samples) {
        const value = chart.of(s)[index];
        if (value !== null) path += `${open ? "L" : "M"}${x(s).toFixed(1)} ${y(value).toFixed(1)}`;
        open = value !== null;
      }
      line.setAttribute("d", path);
    });
    const area = box.querySelector(".area");
    if (area) {
      const d = box.querySelector(".line").getAttribute("d");
      area.setAttribute("d", d ? `${d}L300 100L${x(samples.find((s) => chart.of(s)[0] !== null)).toFixed(1)} 100Z` : "");
    }
    const at = box.querySelector(".at"), cursor = box.querySelector(".cursor");
    const shown = hovered && hovered.name === name;
    cursor.style.visibility = shown ? "visible" : "hidden";
    at.textContent = "";
    if (shown) {
      const s = samples.reduce((a, b) => Math.abs(x(b) - hovered.x) < Math.abs(x(a) - hovered.x) ? b : a);
      cursor.setAttribute("x1", x(s));
      cursor.setAttribute("x2", x(s));
      const values = chart.of(s).map((v, n) => (chart.names ? chart.names[n] : "") + orDash(v, chart.show));
      at.textContent = `${values.join(", ")} (${ago(now - s.at)})`;
    }
  }
  for (const box of document.querySelectorAll("[data-chart]")) {
    const svg = box.querySelector("svg");
    const over = (event) => {
      const frame = svg.getBoundingClientRect();
      hovered = { name: box.dataset.chart, x: (event.clientX - frame.left) / frame.width * 300 };
      if (samples.length) draw(hovered.name);
    };
    svg.addEventListener("pointermove", over);
    svg.addEventListener("pointerdown", over);
    svg.addEventListener("pointerleave", () => { hovered = null; if (samples.length) draw(box.dataset.chart); });
  }

  function health(report) {
    const badge = $("state");
    badge.dataset.state = report.state;
    badge.textContent = report.state === "silent" ? "no answer" : report.state;
    document.title = document.title.replace(/^.*? – /, `${badge.textContent} – `);
    const reasons = $("reasons");
    reasons.dataset.for = report.state;
    reasons.replaceChildren(...report.reasons.map((reason) => {
      const item = document.createElement("li");
      item.textContent = reason;
      return item;
    }));
    for (const [name, tier] of Object.entries(report.backends || {})) {
      const one = document.querySelector(`[data-tier="${name}"]`);
      if (one) { one.dataset.state = tier.state; one.textContent = `${name} ${tier.state}`; }
    }
  }
  function figures(stats, exposition) {
    const { memory, journal, commits, git } = stats.storage_stats;
    const used = memory.held_bytes + memory.inode_bytes, requests = histograms(exposition, "caiafs_fuse_request_seconds");
    const at = performance.now() / 1000, all = sum(requests);
    const sample = { at, memory: used, journal: journal.bytes, lag: commits.oldest_uncommitted_seconds, requests, all };
    const before = samples.find((s) => s.at >= at - WINDOW) || null;
    const recent = before ? since(all, before.all) : new Map();
    sample.rate = before ? total(recent) / (at - before.at) : null;
    sample.p50 = quantile(recent, 0.5);
    sample.p99 = quantile(recent, 0.99);
    samples.push(sample);
    while (samples[0].at < at - SPAN) samples.shift();

    text("memory", bytes(used));
    $("memory-meter").value = used;
    text("memory-more", `${bytes(memory.held_bytes)} of contents, ${count(memory.inodes, "file", "files")} known`);
    text("journal", bytes(journal.bytes));
    $("journal-meter").value = journal.bytes;
    text("changes", String(commits.uncommitted_changes));
    text("changes-unit", commits.uncommitted_changes === 1 ? "change" : "changes");
    text("lag", commits.uncommitted_changes ? `the oldest ${seconds(commits.oldest_uncommitted_seconds)} old`
      : "git has everything");
    text("commits", `${count(commits.count, "commit", "commits")} since the mount`
      + (commits.failures ? `, ${count(commits.failures, "failure", "failures")} in a row` : ""));
    if (sample.rate !== null) {
      text("rate", rate(sample.rate));
      text("p50", orDash(sample.p50, seconds));
      text("p99", orDash(sample.p99, seconds));
      text("when", `in the last ${Math.round(at - before.at)} s`);
    }
    text("total", `${total(all)} since the mount`);
    operations(requests, before);
    Object.keys(charts).forEach(draw);
    if (git.head !== head) { head = git.head; commitsNow(); }
  }
  function operations(requests, before) {
    const body = $("operations");
    for (const [op, histogram] of requests) {
      let row = body.querySelector(`[data-op="${op}"]`);
      if (!row) {
        row = body.insertRow();
        row.dataset.op = op;
        for (let n = 0; n < 5; n += 1) row.insertCell();
        row.cells[2].className = "now-col";
        row.cells[0].textContent = op;
      }
      const recent = before ? since(histogram, before.requests.get(op)) : null;
      const cells = [total(histogram), before ? rate(total(recent) / (performance.now() / 1000 - before.at)) : "–",
        orDash(quantile(histogram, 0.5), seconds), orDash(quantile(histogram, 0.99), seconds)];
      cells.forEach((value, n) => { row.cells[n + 1].textContent = value; });
    }
  }

  function element(kind, name, ...children) {
    const made = document.createElement(kind);
    if (name) made.className = name;
    made.append(...children);
    return made;
  }
  const MARKS = { added: "+", removed: "−", changed: "~", unreadable: "!" };
  function commit(one) {
    const when = document.createElement("time");
    when.dateTime = new Date(one.time * 1000).toISOString();
    const files = one.files.map((file) =>
      element("li", file.change, element("span", "", MARKS[file.change]), element("span", "", file.path)));
    if (one.more_files) files.push(element("li", "", element("span", "", "…"), element("span", "", "and more")));
    const item = element("li", "", element("div", "subject", one.subject || "(no message)"),
      element("div", "by", element("code", "", one.commit.slice(0, 12)), " ", when, ` by ${one.author.replace(/ <.*/, "")}`));
    if (files.length) item.append(element("ul", "files", ...files.slice(0, FEW)));
    const rest = files.slice(FEW);
    if (rest.length) {
      const many = one.more_files ? "more files" : count(rest.length, "more file", "more files");
      item.append(element("details", "", element("summary", "", many), element("ul", "files", ...rest)));
    }
    return item;
  }
  async function commitsNow() {
    const { commits } = await ask("/api/v1/history?limit=12");
    if (commits.length) $("history").replaceChildren(...commits.map(commit));
    times();
  }
  function times() {
    for (const one of document.querySelectorAll("time")) {
      one.title = new Date(one.dateTime).toLocaleString();
      one.textContent = ago((Date.now() - new Date(one.dateTime)) / 1000);
    }
  }

  async function ask(path, isText) {
    const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(8000) });
    if (!answer.ok && !(answer.status === 503 && path.endsWith("/health"))) throw new Error(String(answer.status));
    if (isText) return answer.text();
    const body = await answer.json();
    if (body.error) throw new Error(body.error.message);
    return body;
  }
  async function look() {
    clearTimeout(timer);
    if (document.hidden) return;
    try {
      const [report, stats, exposition] = await Promise.all(
        [ask("/api/v1/storage/health"), ask("/api/v1/storage/stats"), ask("/metrics", true)]);
      failing = 0;
      health(report);
      figures(stats, exposition);
      text("updated", `up to date, ${new Date().toLocaleTimeString()}`);
      times();
    } catch (error) {
      failing += 1;
      if (failing > 1) health({ state: "silent", reasons: [`The mount did not answer (${error.message}). What is below is of before.`] });
    }
    timer = setTimeout(look, EVERY * Math.min(1 + failing, 5));
  }
  document.documentElement.classList.add("live");
  document.addEventListener("visibilitychange", look);
  look();
})();
