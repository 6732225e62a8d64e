// The page's script: draws the pictures from the data in the page, filters them and the table of runs.
(() => {
  "use strict";
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("figures").textContent);
  const coarse = matchMedia("(pointer: coarse)").matches;
  const config = { displayModeBar: false, responsive: true, doubleClick: "reset", showTips: false };
  const dirty = new Set();
  const inView = new Set();
  let plotly = null;

  // Plotly lies in the page gzipped. The content security policy knows its hash: it runs only if it is what it was.
  async function load() {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const element = document.createElement("script");
    element.textContent = await new Response(stream).text();
    document.head.append(element);
    return window.Plotly;
  }

  const colour = (name, style) => {
    const match = /^var\((--[\w-]+)\)$/.exec(name);
    return match ? style.getPropertyValue(match[1]).trim() : name;
  };

  // All that a section's controls say now.
  function chosen(section) {
    const pressed = [...section.querySelectorAll("button[data-group]")];
    return {
      view: section.querySelector("input[type=radio]:checked").value,
      runs: section.querySelector("[data-show=runs]").checked,
      attained: section.querySelector("[data-show=attained]")?.checked,
      hidden: new Set(
        pressed.filter((b) => b.getAttribute("aria-pressed") === "false").map((b) => Number(b.dataset.group)),
      ),
    };
  }

  // The lines shown over a mark. Names in the data are escaped already.
  function runLines(all, panel, view, arm, at) {
    const one = all.arms[arm];
    const lines = [`<b>${one.name}</b> · ${at === null ? one.over : `seed ${one.seeds[at]}`}`, ...one.lines];
    const metrics = [all.metrics[0], all.metrics[panel.metric]];
    const said = (metric, who, seed) => {
      const place = metric[view][who];
      if (!place) return "–";
      if (seed === null) return place.text;
      const index = place.seeds.indexOf(seed);
      return index < 0 ? "–" : place.texts[index];
    };
    const seed = at === null ? null : one.seeds[at];
    for (const metric of metrics) lines.push(`${metric.title}: ${said(metric, arm, seed)}`);
    for (const control of one.controls) {
      const [loss, score] = metrics.map((metric) => said(metric, control, seed));
      lines.push(`${all.arms[control].name}${seed === null ? "" : ", same seed"}:`, `   ${score} at task loss ${loss}`);
    }
    if (metrics[1].own[arm]) lines.push(metrics[1].own[arm]);
    if (metrics[1].trained[arm]) lines.push("† trained on this score: no evidence");
    return lines.join("<br>");
  }

  function traces(all, panel, state, style) {
    const { view, hidden } = state;
    const loss = all.metrics[0][view];
    const score = all.metrics[panel.metric][view];
    const trained = all.metrics[panel.metric].trained;
    const ink = (name) => colour(name, style);
    const card = ink("var(--page)");
    const base = { type: "scatter", showlegend: false };
    const lines = [];
    const runs = [];
    const means = [];
    const shown = new Set();
    const there = (arm) => loss[arm] && score[arm];
    all.groups.forEach((group, index) => {
      if (!hidden.has(index)) group.arms.filter(there).forEach((arm) => shown.add(arm));
    });
    const path = (arms, more) => ({
      ...base, mode: "lines", hoverinfo: "skip",
      x: arms.map((arm) => (arm === null ? null : loss[arm].mean)),
      y: arms.map((arm) => (arm === null ? null : score[arm].mean)),
      ...more,
    });
    const front = panel.front.filter((arm) => shown.has(arm));
    if (front.length > 1) lines.push(path(front, { name: "front", line: { color: ink("var(--front)"), width: 5 } }));
    all.groups.forEach((group, index) => {
      const found = state.attained && !hidden.has(index) && panel.attained[view][index];
      if (!found) return;
      const color = ink(group.colour);
      const said = (corner, at) => `${(at ? all.metrics[panel.metric] : all.metrics[0]).title}: ${found.texts[corner][at]}`;
      lines.push({
        ...base, mode: "lines+markers", name: "attained", x: found.x, y: found.y,
        line: { color, width: 1.5, dash: "dash", shape: "hv" }, marker: { symbol: "square-open", color, size: 5 },
        hovertext: found.x.map((_, corner) => [`<b>${found.name}</b> · ${found.over}`, said(corner, 0), said(corner, 1)].join("<br>")),
        hovertemplate: "%{hovertext}<extra></extra>",
      });
    });
    for (const group of all.groups) {
      const arms = group.arms.filter((arm) => shown.has(arm));
      if (!arms.length) continue;
      const color = ink(group.colour);
      const marker = { symbol: group.symbol, color };
      if (group.control) {
        const tied = arms.filter((arm) => shown.has(all.arms[arm].owner));
        const ends = tied.flatMap((arm) => [all.arms[arm].owner, arm, null]);
        if (ends.length) lines.push(path(ends, { name: "tie", line: { color, width: 1.5, dash: "dot" } }));
      } else if (arms.length > 1) {
        lines.push(path(arms, { name: "curve", line: { color, width: 1.5 } }));
      }
      if (state.runs) {
        const x = [];
        const y = [];
        const text = [];
        for (const arm of arms) {
          all.arms[arm].seeds.forEach((seed, at) => {
            const [i, j] = [loss[arm].seeds.indexOf(seed), score[arm].seeds.indexOf(seed)];
            if (i < 0 || j < 0) return;
            x.push(loss[arm].runs[i]);
            y.push(score[arm].runs[j]);
            text.push(runLines(all, panel, view, arm, at));
          });
        }
        runs.push({
          ...base, mode: "markers", name: "runs", x, y, hovertext: text, hovertemplate: "%{hovertext}<extra></extra>",
          marker: { ...marker, size: 6, opacity: 0.45 },
        });
      }
      const error = (from) => ({
        type: "data", array: arms.map((arm) => from[arm].half ?? 0), color, thickness: 1.2, width: arms.length > 8 ? 0 : 3,
        visible: arms.some((arm) => from[arm].half !== null),
      });
      const many = arms.length > 6;
      const label = (arm, at) =>
        (group.arms.length > 1 && !group.control && (!many || at === 0 || at === arms.length - 1) ? all.arms[arm].label : "") +
        (trained[arm] ? " †" : "");
      const place = (of) => ({ x: of.map((arm) => loss[arm].mean), y: of.map((arm) => score[arm].mean) });
      const size = many ? 9 : 12;
      means.push({
        ...base, ...place(arms), mode: "markers", name: "means",
        hovertext: arms.map((arm) => runLines(all, panel, view, arm, null)), hovertemplate: "%{hovertext}<extra></extra>",
        marker: { ...marker, size, line: { width: 1.5, color: card } }, error_x: error(loss), error_y: error(score),
      });
      const labelled = arms.filter((arm, at) => label(arm, at));
      // The marks of this trace aren't seen: they keep its texts off those below.
      if (labelled.length) means.push({
        ...base, ...place(labelled), mode: "markers+text", name: "labels", hoverinfo: "skip", cliponaxis: false,
        text: labelled.map((arm) => label(arm, arms.indexOf(arm))), textposition: "top right",
        textfont: { size: 11, color: ink("var(--soft)") }, marker: { ...marker, size, opacity: 0 },
      });
    }
    return [...lines, ...runs, ...means];
  }

  function layout(all, panel, view, style, div) {
    const ink = (name) => colour(name, style);
    const axis = (metric) => ({
      title: { text: metric.axis[view], standoff: 8, font: { size: 12, color: ink("var(--soft)") } },
      zeroline: view === "changes", zerolinecolor: ink("var(--line)"), zerolinewidth: 1.5,
      gridcolor: ink("var(--grid)"), tickcolor: ink("var(--grid)"), tickfont: { color: ink("var(--soft)") },
      nticks: 6, automargin: true,
      ...(metric.percent && view === "values" ? { tickformat: ".3~%" } : {}),
    });
    const score = all.metrics[panel.metric];
    const higher = score.direction === "higher";
    return {
      xaxis: axis(all.metrics[0]), yaxis: axis(score),
      annotations: score.direction === null ? [] : [{
        xref: "paper", yref: "paper", x: 0.01, y: higher ? 0.99 : 0.01, xanchor: "left",
        yanchor: higher ? "top" : "bottom", text: higher ? "↖ better" : "↙ better", showarrow: false,
        font: { size: 11, color: ink("var(--soft)") },
      }],
      hoverlabel: {
        align: "left", bgcolor: ink("var(--raised)"), bordercolor: ink("var(--line)"),
        font: { family: "system-ui, sans-serif", size: 12, color: ink("var(--ink)") }, namelength: -1,
      },
      margin: { l: 60, r: 28, t: 8, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: ink("var(--ink)") },
      hovermode: "closest", dragmode: coarse ? false : "zoom",
      height: div.clientHeight,
      ...("print" in root.dataset ? { width: div.clientWidth, autosize: false } : { autosize: true }),
    };
  }

  function draw(div) {
    dirty.delete(div);
    const section = div.closest("section.pictures");
    const all = data[section.dataset.section];
    const panel = all.panels.find((one) => one.id === div.id);
    const state = chosen(section);
    const style = getComputedStyle(root);
    const found = traces(all, panel, state, style);
    div.classList.toggle("empty", !found.length);
    if (!found.length) plotly.purge(div);
    else plotly.react(div, found, layout(all, panel, state.view, style, div), config);
  }

  // One picture at a time, those in view first and the rest when there is time: a page of many runs stays quick.
  const whenIdle = window.requestIdleCallback ?? ((call) => setTimeout(call, 50));
  const afterNextFrame = (call) => requestAnimationFrame(() => setTimeout(call));
  let waiting = false;
  function redraw(divs) {
    divs.forEach((div) => dirty.add(div));
    root.dataset.drawn = "";
    next();
  }

  function next() {
    if (!plotly || waiting) return;
    if (!dirty.size) {
      root.dataset.drawn = "all";
      return;
    }
    const seen = [...dirty].find((div) => inView.has(div));
    waiting = true;
    (seen ? afterNextFrame : whenIdle)(() => {
      waiting = false;
      const div = [...dirty].find((one) => inView.has(one)) ?? [...dirty][0];
      if (div) draw(div);
      next();
    });
  }

  function pictures(section) {
    const divs = [...section.querySelectorAll(".plot")];
    const status = section.querySelector(".status");
    const buttons = [...section.querySelectorAll("button[data-group]")];
    const changed = () => {
      const on = buttons.filter((button) => button.getAttribute("aria-pressed") === "true").length;
      status.textContent = on === buttons.length ? "" : `${on} of ${buttons.length} methods and controls are shown.`;
      redraw(divs);
    };
    section.addEventListener("change", changed);
    for (const button of buttons) {
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
        changed();
      });
    }
    for (const all of section.querySelectorAll("button[data-all]")) {
      all.addEventListener("click", () => {
        buttons.forEach((button) => button.setAttribute("aria-pressed", all.dataset.all));
        changed();
      });
    }
    changed();
    return divs;
  }

  function searchable(details) {
    const input = details.querySelector("input[type=search]");
    const rows = [...details.querySelectorAll("tbody tr")];
    const status = details.querySelector(".status");
    let texts = null;
    input.addEventListener("input", () => {
      texts ??= rows.map((row) => row.textContent.toLowerCase());
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      rows.forEach((row, at) => {
        row.hidden = !words.every((word) => texts[at].includes(word));
        count += !row.hidden;
      });
      status.textContent = words.length ? `${count} of ${rows.length} runs` : "";
    });
  }

  document.querySelectorAll("details.runs").forEach(searchable);
  // A link into folded text unfolds it.
  const unfold = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  };
  addEventListener("hashchange", unfold);
  unfold();

  const plots = [...document.querySelectorAll("section.pictures")].flatMap(pictures);
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) inView.add(target);
        else inView.delete(target);
      }
      next();
    },
    { rootMargin: "200px" },
  );
  plots.forEach((div) => watcher.observe(div));

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(plots));
  let opened = [];
  addEventListener("beforeprint", () => {
    root.dataset.print = "";
    opened = [...document.querySelectorAll("details:not([open]):not(.runs)")];
    opened.forEach((details) => { details.open = true; });
    if (plotly) plots.forEach(draw);
  });
  addEventListener("afterprint", () => {
    delete root.dataset.print;
    opened.forEach((details) => { details.open = false; });
    redraw(plots);
  });

  if (plots.length) {
    load().then((found) => {
      plotly = found;
      redraw(plots);
    }).catch((error) => {
      plots.forEach((div) => div.classList.add("failed"));
      throw error;
    });
  }
})();
