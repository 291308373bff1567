// Moves the figures: one clock for each, running while it is in sight. A figure is drawn already, by
// drawing.py, as its last frame; here the paths and pictures of another moment take that place.
"use strict";
(() => {
  const GAP = 32767; // what drawing.py writes for a vertex that is none
  const REST = 1.5; // seconds that the last frame stays before it begins again
  const frozen = new URLSearchParams(location.search).get("t");
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

  const decode = (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Int16Array(bytes.buffer);
  };
  const short = (number) => Math.round(number * 10) / 10;

  // The path through vertices x0, y0, x1, y1, …; drawing.py has the same function.
  const paths = {
    points: (at) => {
      let path = "";
      for (let i = 0; i < at.length; i += 2) path += `M${short(at[i])} ${short(at[i + 1])}h0`;
      return path;
    },
    line: (at) => {
      let path = "", pen = "M";
      for (let i = 0; i < at.length; i += 2) {
        const gap = !(at[i] < GAP / 10 && at[i + 1] < GAP / 10);
        if (!gap) path += `${pen}${short(at[i])} ${short(at[i + 1])}`;
        pen = gap ? "M" : "L";
      }
      return path;
    },
    bars: (at) => paths.line(at) + "Z",
    arrows: (at) => {
      let path = "";
      for (let i = 0; i < at.length; i += 4) path += arrow(at[i], at[i + 1], at[i + 2], at[i + 3]);
      return path;
    },
  };
  const arrow = (x, y, u, v) => {
    const length = Math.hypot(u - x, v - y);
    if (length < 1) return `M${short(u)} ${short(v)}h0`;
    const size = Math.min(length / 3, 6) / length, a = (x - u) * size, b = (y - v) * size;
    const one = `${short(u + a - b * 0.6)} ${short(v + b + a * 0.6)}`;
    const other = `${short(u + a + b * 0.6)} ${short(v + b - a * 0.6)}`;
    const tip = `${short(u)} ${short(v)}`;
    return `M${short(x)} ${short(y)}L${tip}M${one}L${tip}L${other}`;
  };

  // A layer is a function that shows the moment `at`, a frame's number with a fraction.
  const layer = (element, count) => {
    const kind = element.dataset.kind;
    if (kind === "sheet") {
      const [across, width, height] = element.dataset.cell.split(" ").map(Number);
      return (at) => {
        const frame = Math.round(at);
        element.setAttribute("x", -(frame % across) * width);
        element.setAttribute("y", -Math.floor(frame / across) * height);
      };
    }
    const numbers = decode(element.dataset.frames), size = numbers.length / count;
    const now = new Float64Array(size);
    const between = (at) => {
      const first = Math.min(Math.floor(at), count - 1), next = Math.min(first + 1, count - 1);
      const part = at - first;
      for (let i = 0; i < size; i++) {
        const a = numbers[first * size + i], b = numbers[next * size + i];
        now[i] = (a === GAP ? a : a + part * (b - a)) / 10;
      }
      return now;
    };
    if (kind !== "trails") {
      const jumps = "jumps" in element.dataset;
      return (at) => element.setAttribute("d", paths[kind](between(jumps ? Math.round(at) : at)));
    }
    return (at) => {
      const tip = between(at), whole = Math.floor(at);
      let path = "";
      for (let n = 0; n < size; n += 2) {
        path += `M${numbers[n] / 10} ${numbers[n + 1] / 10}`;
        for (let k = 1; k <= whole; k++) {
          path += `L${numbers[k * size + n] / 10} ${numbers[k * size + n + 1] / 10}`;
        }
        if (at > whole) path += `L${short(tip[n])} ${short(tip[n + 1])}`;
      }
      element.setAttribute("d", path);
    };
  };

  const player = (figure) => {
    const captions = JSON.parse(figure.dataset.captions), last = captions.length - 1;
    const seconds = Number(figure.dataset.seconds);
    const button = figure.querySelector("button"), slider = figure.querySelector("input");
    const words = figure.querySelector(".when");
    let layers = null, at = last, seen = false, wanted = !calm, before = null, rest = 0;

    const show = (moment) => {
      layers ??= [...figure.querySelectorAll("[data-kind]")].map((one) => layer(one, last + 1));
      at = moment;
      layers.forEach((draw) => draw(at));
      const caption = captions[Math.round(at)];
      words.textContent = caption;
      slider.value = Math.round(at);
      // Not while it plays, or a screen reader on the slider would never be silent.
      if (!wanted) slider.setAttribute("aria-valuetext", caption);
    };
    const label = () => {
      button.classList.toggle("playing", wanted);
      button.setAttribute("aria-label", `${wanted ? "Pause" : "Play"}: ${figure.dataset.title}`);
    };
    const tick = (time) => {
      if (!seen || !wanted) { before = null; return; }
      const passed = before === null ? 0 : Math.min((time - before) / 1000, 0.1);
      before = time;
      if (at < last) show(Math.min(at + (passed * last) / seconds, last));
      else if ((rest += passed) > REST) { rest = 0; show(0); }
      requestAnimationFrame(tick);
    };
    const go = () => { if (seen && wanted && before === null) requestAnimationFrame(tick); };

    figure.querySelector(".controls").hidden = false;
    if (frozen !== null) {
      wanted = false;
      show(Math.min(Math.max(Number(frozen) || 0, 0), 1) * last);
    }
    label();
    button.addEventListener("click", () => {
      wanted = !wanted;
      if (wanted && at >= last) show(0);
      label();
      go();
    });
    slider.addEventListener("input", () => {
      wanted = false;
      label();
      show(Number(slider.value));
    });
    new IntersectionObserver((entries) => {
      const visible = entries[entries.length - 1].isIntersecting;
      if (visible && !seen && wanted && layers === null) show(0);
      seen = visible;
      go();
    }, { threshold: 0.25 }).observe(figure);
  };

  document.querySelectorAll("figure.moving").forEach(player);
  document.documentElement.dataset.ready = "";
})();
