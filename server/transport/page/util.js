"use strict";
// Talks to its own server alone. Whatever it shows is put in as text, never as markup; the server's
// Content-Security-Policy would stop anything else.
// Texts, numbers and nodes that every part of the page uses.
const byId = (id) => document.getElementById(id);

function put(node, text) {
  if (node.textContent !== text) node.textContent = text; // else selections would be lost
}

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function digits(value, places = 0) {
  return isNumber(value) ? value.toLocaleString("en", { maximumFractionDigits: places }) : "–";
}

function short(value) { // 12,345 as 12.3k
  if (!isNumber(value) || value < 10000) return digits(value);
  return value < 999500 ? `${digits(value / 1000, 1)}k` : `${digits(value / 1e6, 1)}M`;
}

function memory(bytes) {
  if (!isNumber(bytes)) return "–";
  return bytes < 2 ** 30 ? `${digits(bytes / 2 ** 20, bytes < 2 ** 23 ? 1 : 0)} MiB` : `${digits(bytes / 2 ** 30, 1)} GiB`;
}

function span(seconds) {
  if (!isNumber(seconds)) return "–";
  const s = Math.max(0, seconds);
  if (s < 1) return `${digits(s, 2)} s`;
  if (s < 60) return `${Math.round(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s % 60 < 1 ? "" : ` ${Math.floor(s % 60)} s`}`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

const many = (count, word) => `${digits(count)} ${word}${count === 1 ? "" : "s"}`;
const share = (part, whole) => (isNumber(part) && whole > 0 ? Math.min(1, part / whole) : 0);
