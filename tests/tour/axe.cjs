// Run by axe.sh: node axe.cjs CHROMIUM PAGE [FOLDER]
"use strict";
const { mkdtempSync, rmSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join, resolve } = require("node:path");
const { pathToFileURL } = require("node:url");
const axe = require("axe-core");
const puppeteer = require("puppeteer-core");

const [chromium, file, folder] = process.argv.slice(2);
const address = pathToFileURL(resolve(file)).href;
const SIZES = { phone: [390, 844], desktop: [1280, 800] };
const flags = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
  "--disable-background-networking", "--disable-component-update",
];

// What is drawn now, in short.
const drawn = () =>
  [...document.querySelectorAll("[data-kind]")].map((one) =>
    one.getAttribute("d") ?? `${one.getAttribute("x")} ${one.getAttribute("y")}`);

// So long as the browser draws as often, in which a figure in sight would have begun to move.
const frames = async (number) => {
  while (number--) await new Promise(requestAnimationFrame);
};

const close = (one, other) => {
  const [some, others] = [one, other].map((text) => text.match(/[a-zA-Z]|-?[\d.]+/g));
  return some.length === others.length && some.every((word, i) =>
    word === others[i] || Math.abs(word - others[i]) < 0.11);
};

// The player draws as drawing.py does: its last frame is what is there without it.
const compare = async (page) => {
  await page.setJavaScriptEnabled(false);
  await page.goto(address);
  const without = await page.evaluate(drawn);
  await page.setJavaScriptEnabled(true);
  await page.goto(`${address}?t=1`);
  const played = await page.evaluate(drawn);
  return without.every((one, i) => close(one, played[i])) ? [] : ["the last frame is drawn otherwise"];
};

const judge = async (page, size, scheme) => {
  const faults = [];
  page.on("console", (said) => faults.push(`console: ${said.text()}`));
  page.on("pageerror", (error) => faults.push(`error: ${error.message}`));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(address) && !url.startsWith("data:")) faults.push(`request: ${url}`);
  });
  const [width, height] = SIZES[size];
  await page.setViewport({ width, height, deviceScaleFactor: folder ? 1.5 : 1 });
  const features = [{ name: "prefers-color-scheme", value: scheme }];
  await page.emulateMediaFeatures(features);

  await page.goto(`${address}?t=0.6`);
  faults.push(...(await page.evaluate(() => [
    ...(document.documentElement.scrollWidth > innerWidth ? ["wider than the window"] : []),
    ...[...document.querySelectorAll(".panels path, .panels image")]
      .filter((one) => !/^(M-?\d|data:)/.test(one.getAttribute("d") ?? one.getAttribute("href"))
        || /NaN|Infinity/.test(one.getAttribute("d")))
      .map((one) => `not drawn: ${one.closest("figure").id} ${one.getAttribute("class")}`),
  ])));
  if (folder) {
    await page.screenshot({ path: join(folder, `${size}_${scheme}.png`), fullPage: true });
    if (size === "desktop" && scheme === "light") {
      for (const figure of await page.$$("figure.moving")) {
        const id = await figure.evaluate((one) => one.id);
        await figure.screenshot({ path: join(folder, `${id}.png`) });
      }
    }
  }
  await page.evaluate(axe.source);
  const found = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  for (const one of found.violations) {
    faults.push(...one.nodes.map((node) => `${one.id} (${one.impact}): ${node.html.slice(0, 160)}`));
  }

  faults.push(...(await compare(page)));
  await page.emulateMediaFeatures([...features, { name: "prefers-reduced-motion", value: "reduce" }]);
  await page.goto(address);
  const still = await page.evaluate(drawn);
  await (await page.$("figure.moving"))?.scrollIntoView(); // pages of runs have none
  await page.evaluate(frames, 10);
  const calm = await page.evaluate(drawn);
  if (String(still) !== String(calm)) faults.push("moves where motion is to be reduced");
  await page.emulateMediaFeatures(features);
  await page.goto(address);
  for (const figure of await page.$$("figure.moving")) {
    const before = await page.evaluate(drawn);
    await figure.scrollIntoView();
    await page.waitForFunction(
      `String((${drawn})()) !== ${JSON.stringify(String(before))}`, { timeout: 10_000 },
    ).catch(async () => faults.push(`does not move: ${await figure.evaluate((one) => one.id)}`));
  }
  return faults;
};

(async () => {
  const profile = mkdtempSync(join(tmpdir(), "axe-"));
  const browser = await puppeteer.launch({
    executablePath: chromium, headless: true, args: flags, userDataDir: profile,
  });
  let bad = 0;
  try {
    for (const size of Object.keys(SIZES)) {
      for (const scheme of ["light", "dark"]) {
        const page = await browser.newPage();
        const faults = await judge(page, size, scheme);
        bad += faults.length;
        console.log(`${size}, ${scheme}: ${faults.length ? "" : "no fault"}`);
        faults.forEach((fault) => console.log(`  ${fault}`));
        await page.close();
      }
    }
  } finally {
    await browser.close();
    rmSync(profile, { recursive: true, force: true });
  }
  process.exitCode = bad ? 1 : 0;
})();
