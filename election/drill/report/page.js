"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const overview = document.getElementById("overview"), detail = document.getElementById("detail");
  const tip = document.getElementById("tip"), shown = document.getElementById("window");
  const LEFT = 150, RIGHT = 8, ROW = 15, AXIS = 18, NARROWEST = 0.2, END = Math.max(data.end, 1);
  const HEIGHTS = {leader: 24, etcd: 16, orchestrator: 26, "blocking orchestrator": 26, server: 14, register: 14, reader: 13, collector: 14, agent: 9};
  const rows = 1 + Math.max(-1, ...data.faults.map((fault) => fault[2]));
  let from = 0, to = END, at = null;

  // --- drawing ---------------------------------------------------------------------------------------------------
  const text = (value) => String(value).replace(/[&<>"]/g, (char) => "&#" + char.charCodeAt(0) + ";");
  const clock = (s, digits) => Math.floor(s / 60) + ":" + (s % 60).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  const hue = new Map([...new Set(data.faults.map((fault) => fault[3]))].sort().map((name, number) => [name, (number * 137) % 360]));
  const fill = (name, light) => `hsl(${hue.get(name)} 55% ${light}%)`;
  const lasted = (s) => (s < 0.9995 ? (s * 1000).toFixed(0) + " ms" : s.toFixed(2) + " s");
  const width = () => Math.max(detail.clientWidth, 400);
  const x = (s) => LEFT + ((s - from) / (to - from)) * (width() - LEFT - RIGHT);
  const clip = (px) => Math.max(LEFT, Math.min(px, width() - RIGHT));

  function bar(a, b, top, height, style, hint, extra) {
    const left = clip(x(a)), wide = Math.max(clip(x(b)) - left, 1);
    return `<rect x="${left.toFixed(1)}" y="${top}" width="${wide.toFixed(1)}" height="${height}" class="${style}" data-tip="${text(hint)}" ${extra || ""}/>`;
  }

  function label(a, b, top, value, style) {
    const left = clip(x(a)), wide = clip(x(b)) - left;
    return value && wide > 6.6 * value.length + 6 ? `<text x="${(left + 4).toFixed(1)}" y="${top}" class="${style}">${text(value)}</text>` : "";
  }

  const between = (a, b) => a <= to && b >= from;

  function lane(each, top, height) {
    const out = [`<text x="6" y="${top + height / 2 + (height < 12 ? 3 : 4)}" class="name ${height < 12 ? "small" : ""}">${text(each.name.length > 24 ? each.name.slice(0, 23) + "…" : each.name)}</text>`];
    const thin = each.kind === "agent" || height < 16;
    for (const [a, b, style, name, hint] of each.bars) {
      if (!between(a, b)) continue;
      const whole = `${hint}\n${clock(a, 3)} to ${clock(b, 3)}`;
      if (style === "life") out.push(bar(a, b, top + height - 4, 3, style, whole));
      else if (style === "paused") out.push(bar(a, b, top + 1, height - 2, style, whole));
      else {
        out.push(bar(a, b, top + 2, thin ? height - 3 : height - (each.kind === "leader" ? 3 : 10), style, whole));
        if (!thin) out.push(label(a, b, top + (each.kind === "leader" ? 16 : 14), name, "on"));
      }
    }
    const last = {};
    for (const [s, style, hint] of each.ticks) {
      if (s < from || s > to) continue;
      const px = Math.round(x(s));
      if (last[style] === px) continue;
      last[style] = px;
      const attributes = `class="${style}" data-tip="${text(hint + "\n" + clock(s, 3))}"`;
      const low = top + height - 1;
      if (style === "reaped") out.push(`<path d="M${px - 4} ${top}h8l-4 ${height - 1}z" ${attributes}/>`);
      else if (style === "killed") {
        const size = Math.min(8, height - 3);
        out.push(`<path d="M${px - size / 2} ${low - size - 1}l${size} ${size}m0 ${-size}l${-size} ${size}" ${attributes}/>`);
      }
      else out.push(`<path d="M${px + 0.5} ${style === "wrote" ? low - 6 : top + 1}V${low}" ${attributes}/>`);
    }
    return out.join("");
  }

  function step(wanted) {
    return [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200].find((each) => each >= wanted) || 3600;
  }

  function draw() {
    const top = AXIS + rows * ROW + 4;
    let bottom = top;
    const places = data.lanes.map((each) => { const y = bottom; bottom += HEIGHTS[each.kind] || 16; return y; });
    const every = step((to - from) / (width() / 110)), digits = every < 1 ? 2 : 0;
    const out = ['<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="2" height="6" fill="#39424c" opacity=".75"/></pattern></defs>'];
    for (let s = Math.ceil(from / every) * every; x(s) < width() - 40; s += every) {
      out.push(`<line class="axis" x1="${x(s)}" x2="${x(s)}" y1="${AXIS - 4}" y2="${bottom}"/><text x="${x(s) + 3}" y="12" class="name">${clock(s, digits)}</text>`);
    }
    places.forEach((y) => out.push(`<line class="split" x1="0" x2="${width()}" y1="${y}" y2="${y}"/>`));
    data.faults.forEach(([a, b, row, name, on, number, where], index) => {
      if (!between(a, b)) return;
      const hint = `fault ${number}: ${name}${on ? " on " + on : ""}\n${clock(a, 3)} to ${clock(b, 3)}, ${lasted(b - a)}`;
      out.push(bar(a, b, top, bottom - top, "time", hint));
      for (const hurt of where) out.push(bar(a, b, places[hurt], HEIGHTS[data.lanes[hurt].kind] || 16, "fault", hint, `style="fill:${fill(name, 45)}"`));
      out.push(bar(a, b, AXIS + row * ROW, ROW - 2, "fault-name", hint, `style="fill:${fill(name, 42)}"`));
      const next = data.faults.find((each, later) => later > index && each[2] === row), y = AXIS + row * ROW + 10;
      out.push(label(a, b, y, name, "on") || label(b, next ? next[0] : END, y, name, "name") || label(a, b, y, String(number), "on"));
    });
    data.lanes.forEach((each, number) => {
      out.push(lane(each, places[number], HEIGHTS[each.kind] || 16));
      if (each.kind !== "leader") return;
      for (const [a, b, fault] of data.vacancies) {
        if (!between(a, b)) continue;
        out.push(bar(a, b, places[number] + 2, HEIGHTS.leader - 3, "vacancy", `nobody leads for ${lasted(b - a)}\n${fault}`));
        out.push(label(a, b, places[number] + 16, lasted(b - a), "on"));
      }
    });
    for (const [number, [s, what]] of data.marks.entries()) {
      if (s >= from && s <= to) out.push(`<line class="mark" x1="${x(s)}" x2="${x(s)}" y1="${AXIS}" y2="${bottom}" data-tip="${text(what)}"/><text x="${x(s) + 3}" y="${bottom - 3 - 12 * (number % 2)}">${text(what)}</text>`);
    }
    for (const [s, invariant, what] of data.violations) {
      if (s < from || s > to) continue;
      out.push(`<g data-tip="${text(invariant + "\n" + what)}"><line class="violation" x1="${x(s)}" x2="${x(s)}" y1="${AXIS}" y2="${bottom}"/><path class="flag" d="M${x(s)} ${AXIS - 6}h16v10h-16z"/><text x="${x(s) + 5}" y="${AXIS + 3}" class="on">✗</text></g>`);
    }
    if (at !== null && at >= from && at <= to) out.push(`<line class="at" x1="${x(at)}" x2="${x(at)}" y1="0" y2="${bottom}"/>`);
    detail.setAttribute("height", bottom + 4);
    detail.innerHTML = out.join("");
    shown.textContent = `${clock(from, 2)} to ${clock(to, 2)} of ${clock(END, 0)}`;
    outline();
  }

  function outline() {
    const wide = width(), px = (s) => LEFT + (s / END) * (wide - LEFT - RIGHT), out = [];
    const rect = (a, b, y, high, style, extra) => `<rect x="${px(a).toFixed(1)}" y="${y}" width="${Math.max(px(b) - px(a), 0.8).toFixed(1)}" height="${high}" class="${style}" ${extra || ""}/>`;
    const every = step(END / (wide / 110));
    for (let s = 0; px(s) < wide - 40; s += every) out.push(`<line class="axis" x1="${px(s)}" x2="${px(s)}" y1="4" y2="76"/><text x="${px(s) + 3}" y="12" class="name">${clock(s, 0)}</text>`);
    ["faults", "leader", "nobody leads"].forEach((name, row) => out.push(`<text x="6" y="${28 + row * 17}" class="name">${name}</text>`));
    for (const [a, b, row, name] of data.faults) out.push(rect(a, b, 17 + (13 * row) / rows, Math.max(13 / rows, 2), "fault-name", `style="fill:${fill(name, 45)}"`));
    for (const [a, b, style] of data.lanes[0].bars) out.push(rect(a, b, 34, 13, style));
    const worst = Math.max(0.001, ...data.vacancies.map(([a, b]) => b - a));
    for (const [a, b] of data.vacancies) {
      const high = 3 + (20 * (b - a)) / worst;
      out.push(rect(a, b, 74 - high, high, "vacancy"));
    }
    for (const [s] of data.violations) out.push(`<path class="flag" d="M${px(s) - 4} 2h8l-4 9z"/><line class="violation" x1="${px(s)}" x2="${px(s)}" y1="8" y2="76"/>`);
    out.push(`<rect class="brush" x="${px(from)}" y="1" width="${Math.max(px(to) - px(from), 2)}" height="76"/>`);
    overview.setAttribute("height", 78);
    overview.innerHTML = out.join("");
  }

  // --- moving ----------------------------------------------------------------------------------------------------
  let drawn = 0;
  function look(a, b) {
    const span = Math.min(Math.max(b - a, NARROWEST), END);
    from = Math.min(Math.max(a, 0), END - span);
    to = from + span;
    cancelAnimationFrame(drawn);
    drawn = requestAnimationFrame(draw);
  }
  const seconds = (event) => from + ((event.offsetX - LEFT) / (width() - LEFT - RIGHT)) * (to - from);

  function visit(s, span) {
    at = s;
    look(s - span / 2, s + span / 2);
  }

  function follow() {
    const match = /^#t=([0-9.-]+)$/.exec(location.hash);
    if (!match) return;
    visit(Number(match[1]), 20);
    document.getElementById("picture").scrollIntoView();
  }

  detail.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) return look(from + (event.deltaX / width()) * (to - from), to + (event.deltaX / width()) * (to - from));
    const rect = detail.getBoundingClientRect(), s = from + ((event.clientX - rect.left - LEFT) / (width() - LEFT - RIGHT)) * (to - from);
    const by = Math.exp(event.deltaY / 400);
    return look(s - (s - from) * by, s + (to - s) * by);
  }, {passive: false});
  let grabbed = null;
  detail.addEventListener("pointerdown", (event) => { grabbed = [event.clientX, from, to]; });
  addEventListener("pointermove", (event) => {
    if (!grabbed) return;
    const by = ((grabbed[0] - event.clientX) / (width() - LEFT - RIGHT)) * (grabbed[2] - grabbed[1]);
    look(grabbed[1] + by, grabbed[2] + by);
  });
  addEventListener("pointerup", () => { grabbed = null; picked = null; });

  let picked = null;
  const place = (event) => ((event.clientX - overview.getBoundingClientRect().left - LEFT) / (width() - LEFT - RIGHT)) * END;
  overview.addEventListener("pointerdown", (event) => { picked = place(event); const half = (to - from) / 2; if (to - from < END) look(picked - half, picked + half); });
  addEventListener("pointermove", (event) => {
    if (picked !== null && Math.abs(place(event) - picked) > END / 200) look(Math.min(picked, place(event)), Math.max(picked, place(event)));
  });

  document.querySelectorAll("[data-span]").forEach((button) => button.addEventListener("click", () => {
    const span = Number(button.dataset.span) || END, middle = at !== null && at >= from && at <= to ? at : (from + to) / 2;
    look(middle - span / 2, middle + span / 2);
  }));
  document.querySelectorAll("[data-step]").forEach((button) => button.addEventListener("click", () => {
    const moments = data[button.dataset.step].map((each) => each[0]).sort((a, b) => a - b), now = at === null ? (from + to) / 2 : at;
    const next = Number(button.dataset.to) > 0 ? moments.find((s) => s > now + 0.001) : moments.reverse().find((s) => s < now - 0.001);
    if (next !== undefined) visit(next, Math.min(to - from, 30));
  }));
  addEventListener("hashchange", follow);
  document.addEventListener("click", (event) => { if (event.target.closest('a[href^="#t="]')) setTimeout(follow); });
  addEventListener("resize", draw);
  detail.addEventListener("mousemove", (event) => {
    const hit = event.target.closest("[data-tip]");
    tip.hidden = !hit;
    if (!hit) return;
    tip.textContent = hit.dataset.tip;
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = event.clientY + 16 + "px";
  });
  detail.addEventListener("mouseleave", () => { tip.hidden = true; });

  if (data.end > 240) look(0, 180); else draw();
  if (data.violations.length) visit(data.violations[0][0], Math.min(60, END));
  follow();
})();
